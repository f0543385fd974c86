"""Lightning callbacks: files and schedule."""
