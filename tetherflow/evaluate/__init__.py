"""Figures of quality and drift: how good a long video is, and how much of that it keeps.

`features` turns frames into vectors, `windows` keeps what the figures need of a rollout while it streams
past, `frechet` compares distributions of vectors, `figures` states drift over many prompts with intervals,
and `single` states it for one video.
"""
