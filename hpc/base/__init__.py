"""What everything stands on: files, errors, logs, heartbeats, code snapshots. Knows no job."""
