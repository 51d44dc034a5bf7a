"""The flags of the larger subcommands, without their imports."""
