"""A run on a Kubernetes cluster with the KubeRay operator: applied, watched, put into words, and cleared away."""
