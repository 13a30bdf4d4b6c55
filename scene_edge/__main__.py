"""`python -m scene_edge`: the same as the scene-edge command."""

from scene_edge.cli import main

if __name__ == "__main__":
    main()
