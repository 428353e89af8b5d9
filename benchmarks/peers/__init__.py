"""The same work done by this project, by its peers, and by what one has without it."""
