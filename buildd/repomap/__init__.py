"""RepoMap: what a repository consists of, told in few words. Made and read in processes of their own."""
