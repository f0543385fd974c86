#!/bin/sh
# Runs the tests several times: odd runs in fixed order on a quiet machine, even runs in another order with a busy
# process on each core. Prints a line for each run and ends with the number of runs that failed.
#
#   tests/stress.sh [RUNS [PATH...]]     PYTHON=.venv/bin/python   LOGS=folder of the logs
set -u
runs=${1:-10}
[ $# -gt 0 ] && shift
python=${PYTHON:-.venv/bin/python}
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"
cores=$(getconf _NPROCESSORS_ONLN)
busy=""
failed=0

quiet() {
    for process in $busy; do kill "$process" 2>/dev/null; done
    busy=""
}
trap quiet EXIT
trap 'exit 130' INT TERM

run=1
while [ "$run" -le "$runs" ]; do
    order="fixed" seed="-" load="quiet"
    options=""
    if [ $((run % 2)) -eq 0 ]; then
        order="shuffled" seed=$run load="busy"
        options="--random-order --random-order-seed=$seed"
        core=0
        while [ "$core" -lt "$cores" ]; do
            (while :; do :; done) &
            busy="$busy $!"
            core=$((core + 1))
        done
    fi
    start=$(date +%s)
    # shellcheck disable=SC2086
    if OMP_NUM_THREADS=1 "$python" -m pytest -q -n 2 --dist loadfile $options "$@" >"$logs/$run.log" 2>&1; then
        result="passed"
    else
        result="FAILED"
        failed=$((failed + 1))
    fi
    quiet
    printf 'run %2d  %s  %5d s  %-8s  seed %-3s  %-5s  %s\n' \
        "$run" "$result" "$(($(date +%s) - start))" "$order" "$seed" "$load" "$(grep -E '[0-9]+ (passed|failed|errors?)' "$logs/$run.log" | tail -n 1)"
    grep -E '^(FAILED|ERROR)' "$logs/$run.log"
    run=$((run + 1))
done
echo "$failed of $runs runs failed; logs in $logs"
exit "$failed"
