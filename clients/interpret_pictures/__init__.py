"""Attributions, images and signals as pictures; NumPy and Pillow, no torch, no gRPC.

The server draws with it, and the client without a server: `interpret_client.pictures` is its public
face. OpenCV is imported where an object is cut out, and only there.
"""
