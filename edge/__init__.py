"""The camera end: sources, SCENE, H.264 encoders, SMC encoder, pipeline, spool, publisher, doctor, profiles."""
