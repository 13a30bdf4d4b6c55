"""What the server makes of a picture: boxes, tracks, actions."""
