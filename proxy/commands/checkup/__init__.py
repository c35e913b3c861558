"""What `strata doctor` looks at: each module one part of a set-up, each of its findings one line."""
