"""The commands, one small module each; see `sightline.cli.COMMANDS`."""
