"""Generated from `protos/interpret_api/v1/*.proto` by `make protos`."""
