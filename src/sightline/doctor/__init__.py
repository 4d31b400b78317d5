"""What is checked before a run starts: one small module per probe, each a pure function that returns a Finding."""
