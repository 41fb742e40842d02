"""Pictures and pages out of run folders: reads files only, needs neither a simulator nor torch."""
