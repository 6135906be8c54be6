"""The sidecar: one worker and its fleet over HTTP, for people, probes and scripts."""
