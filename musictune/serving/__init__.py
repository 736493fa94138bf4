"""Music over HTTP: one worker that plays, and an endpoint in front of it."""
