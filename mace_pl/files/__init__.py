"""Files and where they lie: what is written aside and renamed, tables and texts, paths."""
