"""Fixed points of dynamics: search and certificate."""
