"""One file a task; each ends in its `TASK`, with the table of its contenders."""
