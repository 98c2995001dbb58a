//! The OCI runtime: config.json to plan to running process; library and runc-compatible command.
