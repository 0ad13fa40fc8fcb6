"""Manifests for the KubeRay operator: a job and a profile in, Kubernetes objects out. Pure; nothing is applied here."""
