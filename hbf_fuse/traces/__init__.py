"""What a trace of reads says."""
