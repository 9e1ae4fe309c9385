"""A small grammar of short stories: text to continue, where facts have only one short answer."""

import random
from dataclasses import dataclass

ANIMALS = (
    "fox", "bear", "rabbit", "owl", "mouse", "wolf", "cat", "dog", "duck", "goat", "hen", "crow",
    "otter", "deer", "turtle", "frog",
)  # fmt: skip
NAMES = ("Ada", "Ben", "Cora", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kit", "Lena")
MOODS = ("small", "brave", "old", "quiet", "clever", "hungry", "gentle", "lonely")
PLACES = (
    "the river", "the old mill", "the market", "the dark forest", "the hill", "the harbor",
    "the garden", "the castle", "the lake", "the farm",
)  # fmt: skip
THINGS = (
    "a golden key", "a red apple", "a warm blanket", "a broken clock", "a silver bell",
    "a letter", "a lamp", "a map", "a basket of bread", "a blue stone",
)  # fmt: skip
WEATHER = ("The sun was bright", "It was raining", "Snow was falling", "The wind was cold")
FEELINGS = ("happy", "proud", "tired but glad", "full of joy", "calm")
TIMES = ("One morning", "One evening", "Long ago", "One day in summer", "One winter night")


@dataclass(frozen=True)
class Story:
    """A request for a story, and the story (four to six sentences)."""

    request: str
    text: str


def make_story(rng: random.Random) -> Story:
    """The next story of the generator; the same `rng` state gives the same story."""
    animal, friend = rng.sample(ANIMALS, 2)
    name, friend_name = rng.sample(NAMES, 2)
    place, thing, mood = rng.choice(PLACES), rng.choice(THINGS), rng.choice(MOODS)
    sentences = [
        f"{rng.choice(TIMES)}, a {mood} {animal} called {name} went to {place}.",
        f"{rng.choice(WEATHER)}, and {name} was looking for {thing}.",
        rng.choice(
            (
                f"On the way {name} met a {friend} called {friend_name}.",
                f"Near {place} lived a {friend} called {friend_name}.",
            )
        ),
        f'"Can you help me?" asked {name}. "Yes, I can," said {friend_name}.',
        rng.choice(
            (
                f"Together they found {thing} under a tree.",
                f"They looked all day, and at last {friend_name} found {thing}.",
                f"The {friend} had {thing} at home and gave it to {name}.",
            )
        ),
        f"{name} and {friend_name} were {rng.choice(FEELINGS)} and walked home.",
    ]
    if rng.random() < 0.4:
        del sentences[1]
    request = rng.choice((f"Tell me a story about a {animal}.", f"Tell a story about {place}."))
    return Story(request, " ".join(sentences))
