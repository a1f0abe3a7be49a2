"""The gRPC front end: protobuf in, protobuf out, `engine.api` in between; imports no torch."""
