"""The general English lexicon of the offline judge."""

from __future__ import annotations

from sightline.answers.lexicon import Lexicon, word_list
from sightline.answers.numbers import NUMBER_WORDS

__all__ = ["ENGLISH"]


def _synonyms(table: str) -> dict[str, tuple[str, ...]]:
    """One entry a line: `name: word, word two`; the name is a word itself."""
    entries = {}
    for line in table.strip().splitlines():
        name, _, words = line.strip().partition(":")
        entries[name] = (name, *(w.strip() for w in words.split(",") if w.strip()))
    return entries


_COLORS = _synonyms("""
    red: crimson, scarlet, ruby, maroon, reddish, vermilion, cherry red, blood red, burgundy
    orange: amber, tangerine, orangish
    yellow: golden, lemon, mustard, yellowish, blond, blonde
    green: emerald, olive, lime, jade, greenish, mint, forest green
    blue: navy, azure, cobalt, bluish, sapphire, indigo, sky blue, royal blue, navy blue
    cyan: aqua, turquoise, teal
    purple: violet, lilac, lavender, plum, mauve, purplish
    pink: rose colored, pinkish, salmon, fuchsia, magenta, hot pink
    brown: tan, chestnut, chocolate, brownish, bronze, mahogany
    black: jet black, ebony, blackish, pitch black
    white: ivory, snowy, whitish, cream, snow white
    gray: grey, silver, grayish, greyish, silvery, ash
""")
_SIZES = _synonyms("""
    large: big, huge, enormous, giant, massive, sizable, sizeable
    small: little, tiny, minute, miniature, smallish, mini
""")
_SHADES = _synonyms("""
    dark: deep, darker
    light: pale, bright, lighter, vivid
""")
_SHAPES = {
    "circle": ("round", "circular"),
    "square": ("square shaped", "boxy"),
    "triangle": ("triangular",),
    "diamond": ("diamond shaped", "rhombic"),
    "rectangle": ("rectangular", "oblong"),
    "oval": ("oval shaped", "elliptical"),
}
_MATERIALS = _synonyms("""
    wooden: wood, timber
    metal: metallic, steel, iron, aluminum
    plastic:
    leather:
    brick:
    stone: marble, concrete
    rubber:
    paper: cardboard
""")
_PATTERNS = _synonyms("""
    striped: stripy, with stripes
    dotted: spotted, polka dot
    plain: solid colored
    checkered: checked, plaid
    floral: flowered
""")
_POSTURES = _synonyms("""
    standing: stands, stand
    sitting: seated, sits, sit
    lying: reclining
    walking: strolling, walks, walk
    running: sprinting, runs, run
    sleeping: asleep
""")
_STATES = _synonyms("""
    open: opened
    closed: shut
    empty: vacant
    full: filled
    wet: soaked
    broken: cracked
""")

_SHAPE_NOUNS = _synonyms("""
    circle: disc, disk, ring, roundel
    square: quadrate
    triangle:
    diamond: rhombus, lozenge
    rectangle: oblong shape
    oval: ellipse
    star:
    hexagon:
    pentagon:
    cross: plus sign
    heart:
    cube:
    sphere:
    cylinder:
    cone:
""")
_PART_NOUNS = _synonyms("""
    mark: dot, spot, speck, marking, blob, patch, blotch, speckle, fleck, marker, point
    label: tag, sticker
    logo: emblem, badge
    stripe: band
    handle: grip, knob
    wheel: tire, tyre
    border: frame, outline, rim
    hat: cap, beanie
    shirt: t shirt, tshirt, blouse
    trousers: pants, jeans
    shoe: sneaker, boot
    roof:
    tail:
""")
_NOUNS = _synonyms("""
    person: people, human, individual, pedestrian
    man: men, gentleman, guy, male
    woman: women, lady, female
    child: children, kid, toddler
    boy: lad
    girl: lass
    car: automobile, sedan, vehicle
    truck: lorry
    bus: coach
    bicycle: bike, cycle
    motorcycle: motorbike, scooter
    boat: ship, vessel
    airplane: aeroplane, plane, jet
    train: locomotive
    dog: puppy, hound
    cat: kitten
    bird: pigeon
    horse: pony
    sheep: lamb
    cow: cattle
    elephant:
    giraffe:
    umbrella: parasol
    bag: handbag, purse, backpack
    bottle: flask
    cup: mug
    glass: tumbler
    plate: dish
    bowl:
    knife: knives
    fork:
    spoon:
    chair: stool, seat
    couch: sofa
    bench:
    table: desk
    bed:
    lamp: lantern
    book: volume
    phone: cellphone, telephone, smartphone
    laptop: notebook computer
    screen: monitor, television, tv
    clock: watch
    vase: pot
    flower: blossom
    plant: shrub, bush
    tree:
    ball:
    kite:
    box: crate, carton
    sign: signboard, placard
    traffic light: stoplight
    building: house
    door: gate
    window:
    wall:
    road: street
    apple:
    banana:
    cake:
    pizza:
    sandwich:
    flag: banner
    ladder:
    basket:
    button:
    number: numeral, digit
    word: text, lettering
""")
_REGIONS = _synonyms("""
    top: upper, uppermost, topmost
    bottom: lower, lowest, lowermost, bottommost
    left: leftmost, lefthand, leftward
    right: rightmost, righthand, rightward
    center: centre, middle, central, mid, midst, centrally
""")
_RELATIONS = {
    "above": ("above", "over", "higher than", "higher up than"),
    "below": ("below", "under", "beneath", "underneath", "lower than", "lower down than"),
    "near": ("near", "next to", "beside", "close to", "adjacent to", "alongside", "touching", "by"),
    "behind": ("behind", "in back of"),
    "in front of": ("in front of",),
    "between": ("between", "in between"),
    "on": ("on", "on top of", "upon", "atop", "in", "inside", "inside of", "within", "of", "attached to", "painted on"),
    "has": (
        *(
            "has",
            "have",
            "having",
            "with",
            "carries",
            "carrying",
            "carry",
            "bears",
            "bearing",
            "contains",
            "containing",
        ),
        *("holds", "holding", "wears", "wearing", "shows", "showing", "features", "featuring", "sports", "displays"),
        *("includes", "bore", "carried", "had", "held", "wore", "is marked with", "marked with", "is marked by"),
    ),
}
_SILENT = """
    image picture photo photograph scene view frame background foreground canvas answer question look glance step
    reasoning thought detail location position place area side corner edge half part portion quadrant
    region section third hand way case fact sum order query task conclusion observation description option choice
    front back time moment bit lot kind type sort name camera
"""

ENGLISH = Lexicon(
    name="english",
    attributes={
        "color": _COLORS,
        "size": _SIZES,
        "shade": _SHADES,
        "shape": _SHAPES,
        "material": _MATERIALS,
        "pattern": _PATTERNS,
        "posture": _POSTURES,
        "state": _STATES,
        "count": {},
    },
    nouns={**_NOUNS, **_PART_NOUNS, **_SHAPE_NOUNS},
    exclusive=(frozenset(_SHAPE_NOUNS), frozenset(("man", "woman", "boy", "girl"))),
    generic=frozenset(("object", "thing", "item", "shape", "figure", "element")),
    parts=frozenset(_PART_NOUNS),
    regions=_REGIONS,
    relations=_RELATIONS,
    inverses={
        "left": "right",
        "right": "left",
        "above": "below",
        "below": "above",
        "behind": "in front of",
        "in front of": "behind",
    },
    symmetric=frozenset(("near",)),
    numbers={word: value for word, value in NUMBER_WORDS.items() if word != "none"},
    soft=frozenset(("size", "shade", "shape")),
    silent=frozenset(word_list(_SILENT)),
)
