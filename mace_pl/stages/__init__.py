"""The stages of an erasure, one file each: functions that take values and return a value."""
