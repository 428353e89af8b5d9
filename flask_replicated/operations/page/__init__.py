"""The live page: what the replicas of a running application do, and buttons for it."""
