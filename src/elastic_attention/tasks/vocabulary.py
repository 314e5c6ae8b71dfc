"""Word lists of the generated samples."""

ADJECTIVE_TEXT = """
amber ancient bitter blue brave bright broken calm clever cold crimson curious dark distant dusty eager
early empty faint fancy fast fierce frozen gentle giant golden green grey hidden hollow honest humble icy
ivory jolly kind lazy lonely loud lucky mellow misty modern narrow noble pale plain proud purple quiet rapid
red rough round rusty secret sharp shiny silent silver simple small smooth solid spotted steady strange
sunny sweet tall tiny velvet vivid warm wild wise wooden yellow young
"""
NOUN_TEXT = """
anchor apple arrow badge balloon banner barrel basket beacon bell blanket bottle bridge bucket button cabin
candle canoe canvas carpet castle cedar chain chair chapel cherry clock cloud compass copper cottage cradle
crystal curtain desk diamond dolphin door dragon drum eagle engine falcon feather fence ferry fiddle flute
forest fountain garden glove goblet guitar hammer harbor harp helmet hornet island jacket jungle kettle
kitten ladder lake lamp lantern lemon lion lizard magnet maple marble meadow mirror monkey mountain needle
oak ocean orchard otter owl paddle panther parrot pebble pencil piano pillow pirate pocket pond prism puzzle
rabbit raven ribbon river rocket saddle sailor salmon scarf shell shield spider spoon statue stone table
temple thunder tiger tower trumpet turtle valley violin wagon walnut whistle willow window wizard wolf zebra
"""
# Classes for few-shot labels, a line each: the label, then its members.
CLASS_TEXT = """
animal: dog cat horse cow sheep goat pig rabbit mouse lion tiger bear wolf fox deer
food: bread cheese butter rice soup pasta cake honey apple banana carrot potato onion tomato egg
tool: hammer saw drill wrench knife shovel axe rake ladder pliers screwdriver chisel needle broom
color: red blue green yellow purple orange black white brown pink grey crimson violet golden
body: hand foot arm leg head nose ear eye mouth knee elbow shoulder finger neck chin
clothing: shirt coat hat shoe sock glove scarf dress skirt jacket belt sweater boot cap vest
weather: rain snow wind storm fog hail thunder lightning cloud sunshine frost breeze drizzle sleet
vehicle: car bus train truck bicycle boat ship plane tram taxi tractor wagon van ferry scooter
"""
ADJECTIVES = ADJECTIVE_TEXT.split()
NOUNS = NOUN_TEXT.split()
CLASSES = {label: words.split() for label, words in (line.split(":") for line in CLASS_TEXT.strip().splitlines())}
