"""The texts of the demo shop, which say what an item is but never how it looks.

`describe` and `categories` compose an item's texts from its kind of product. `KINDS` lists the kinds in the order in
which users tend to buy them: a tent, then a sleeping bag, a mat, a lantern, then things for the kitchen.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of product.

    Attributes:
        names: the names that a title may begin with.
        materials: the materials that a title may name.
        sizes: the sizes that a title may name.
        uses: sentences about what the product is for, which open a description.
        cares: sentences about care, quality and the like, which close a description.
    """

    names: tuple[str, ...]
    materials: tuple[str, ...]
    sizes: tuple[str, ...]
    uses: tuple[str, ...]
    cares: tuple[str, ...]


_OUTDOOR = ("Air it before packing it away.", "Seams are stitched twice.", "Comes with a carry bag.")
_METAL = ("Dry it after rinsing to keep rust away.", "Guaranteed for ten years.", "Spare parts are available.")
_WOOD = ("Oil it twice a year.", "Wipe it with a damp cloth.", "Made by a small workshop.")
_JAR = ("Safe in the dishwasher.", "Seals are sold separately.", "Stackable in the cupboard.")
_POUCH = ("Closes with a zip.", "Seams are stitched twice.", "Wipe it with a damp cloth.")
_CAN = ("Drains to the last drop.", "Easy to refill.", "Guaranteed for five years.")
_POT = ("Drips go into a saucer.", "Stands firm on windy days.", "Guaranteed for five years.")
_GLOVES = ("Machine washable at 30 degrees.", "Seams are stitched twice.", "Cuffs keep the soil out.")
_PAPER = ("Refills are sold separately.", "Ships in a card sleeve.", "A favourite of students.")
_LUGGAGE = ("Handles can be replaced.", "Guaranteed for five years.", "Fits the rules of most airlines.")
_SOFT = ("The cover is machine washable.", "Comes with a carry bag.", "Free of harmful substances.")

KINDS: tuple[Kind, ...] = (
    Kind(
        ("Camping tent", "Trekking tent", "Family tent"),
        ("ripstop nylon", "polyester", "cotton canvas"),
        ("one person", "two persons", "four persons"),
        ("Pitches in five minutes and keeps out wind and rain.", "A shelter for nights in the mountains."),
        _OUTDOOR,
    ),
    Kind(
        ("Sleeping bag", "Mummy sleeping bag", "Travel sleeping bag"),
        ("goose down", "hollow fibre", "merino wool"),
        ("for summer", "for three seasons", "for winter"),
        ("Keeps you warm through a night in the tent.", "Packs small and warms fast when camping."),
        _OUTDOOR,
    ),
    Kind(
        ("Sleeping mat", "Self-inflating camping mat", "Insulated sleeping pad"),
        ("closed-cell foam", "laminated polyester", "natural rubber"),
        ("3 cm thick", "5 cm thick", "8 cm thick"),
        ("Insulates the sleeper from cold ground.", "Lies under the sleeping bag and rolls up tight."),
        _OUTDOOR,
    ),
    Kind(
        ("Camping lantern", "Rechargeable tent lantern", "Storm lantern"),
        ("aluminium", "polycarbonate", "steel"),
        ("200 lumens", "400 lumens", "800 lumens"),
        ("Lights the camp site for a whole evening.", "Hangs from the ridge of the tent and runs on batteries."),
        _METAL,
    ),
    Kind(
        ("Chef's knife", "Kitchen knife", "Vegetable knife"),
        ("carbon steel", "stainless steel", "Damascus steel"),
        ("blade of 14 cm", "blade of 18 cm", "blade of 21 cm"),
        ("Slices vegetables, herbs and meat with little effort.", "The first tool of every cook, sharp for years."),
        _METAL,
    ),
    Kind(
        ("Cutting board", "Chopping board", "Carving board"),
        ("beech wood", "bamboo", "end-grain walnut"),
        ("small", "medium", "large"),
        ("A steady base for chopping that is kind to knives.", "Catches the juice while you carve the roast."),
        _WOOD,
    ),
    Kind(
        ("Frying pan", "Skillet", "Sauté pan"),
        ("cast iron", "forged aluminium", "three-ply steel"),
        ("20 cm", "24 cm", "28 cm"),
        ("Browns meat and eggs evenly on any hob.", "Goes from the stove into the oven."),
        _METAL,
    ),
    Kind(
        ("Storage jar", "Pantry jar", "Preserving jar"),
        ("borosilicate glass", "stoneware", "enamelled steel"),
        ("0.5 litres", "1 litre", "2 litres"),
        ("Keeps flour, rice and pasta dry in the pantry.", "Closes airtight, so that coffee and tea stay fresh."),
        _JAR,
    ),
    Kind(
        ("Garden trowel", "Hand trowel", "Planting trowel"),
        ("forged steel", "stainless steel", "recycled aluminium"),
        ("short handle", "long handle", "narrow blade"),
        ("Digs planting holes in beds and pots.", "For setting seedlings and lifting weeds."),
        _METAL,
    ),
    Kind(
        ("Planter", "Flower pot", "Raised plant pot"),
        ("fired clay", "fibre cement", "recycled resin"),
        ("for herbs", "for shrubs", "for balconies"),
        ("Gives roots room and lets water drain.", "Stands outdoors all year, frost does no harm."),
        _POT,
    ),
    Kind(
        ("Watering can", "Indoor watering can", "Garden watering can"),
        ("galvanised steel", "recycled plastic", "zinc"),
        ("1.5 litres", "5 litres", "10 litres"),
        ("Pours gently over seedlings through its long spout.", "Waters beds and houseplants without splashing."),
        _CAN,
    ),
    Kind(
        ("Gardening gloves", "Pruning gloves", "Work gloves for the garden"),
        ("goatskin leather", "bamboo fabric", "nitrile-coated cotton"),
        ("size 7", "size 8", "size 9"),
        ("Protect hands from thorns and wet soil.", "Firm grip when weeding, pruning and planting."),
        _GLOVES,
    ),
    Kind(
        ("Notebook", "Bullet journal", "Sketch notebook"),
        ("recycled paper", "cotton paper", "stone paper"),
        ("A6, 96 pages", "A5, 160 pages", "A4, 200 pages"),
        ("Takes notes, lists and plans; lies open on its own.", "Thread-bound pages for writing every day."),
        _PAPER,
    ),
    Kind(
        ("Fountain pen", "Rollerball pen", "Ballpoint pen"),
        ("brass", "resin", "anodised aluminium"),
        ("fine nib", "medium nib", "broad nib"),
        ("Writes smoothly and starts at once.", "A balanced pen for letters, notes and signatures."),
        _PAPER,
    ),
    Kind(
        ("Pencil case", "Pen roll", "Stationery pouch"),
        ("waxed canvas", "vegetable-tanned leather", "wool felt"),
        ("for 10 pens", "for 20 pens", "for 40 pens"),
        ("Holds pens, rulers and an eraser for school or office.", "Keeps stationery together in the bag."),
        _POUCH,
    ),
    Kind(
        ("Desk lamp", "Reading lamp", "Clamp lamp for the desk"),
        ("steel and brass", "ash wood", "aluminium"),
        ("with dimmer", "with USB port", "with timer"),
        ("Lights the desk without glare while you read or work.", "Its jointed arm puts the light on the page."),
        _METAL,
    ),
    Kind(
        ("Suitcase", "Cabin trolley", "Family suitcase"),
        ("polycarbonate", "recycled polyester", "aluminium"),
        ("38 litres", "65 litres", "95 litres"),
        ("Rolls quietly on four wheels, with a combination lock.", "Luggage for flights from weekends to weeks."),
        _LUGGAGE,
    ),
    Kind(
        ("Packing cubes", "Luggage organisers", "Compression packing cubes"),
        ("light nylon", "mesh fabric", "organic cotton"),
        ("set of 3", "set of 5", "set of 8"),
        ("Sort clothes inside the suitcase and save space.", "Keep shirts folded and shoes apart on the way."),
        _POUCH,
    ),
    Kind(
        ("Neck pillow", "Travel pillow", "Inflatable neck rest"),
        ("memory foam", "microbeads", "brushed cotton"),
        ("for children", "for adults", "extra high"),
        ("Supports the head while you sleep on planes and trains.", "Takes the strain off the neck on long flights."),
        _SOFT,
    ),
    Kind(
        ("Travel bottles", "Toiletry bottles", "Refillable cosmetics bottles"),
        ("silicone", "recycled PET", "aluminium"),
        ("50 ml each", "80 ml each", "100 ml each"),
        ("Take shampoo and lotion through airport security.", "Leak-proof caps keep the washbag dry."),
        _JAR,
    ),
)


_DEPARTMENTS = ("Camping", "Kitchen", "Garden", "Desk", "Travel")
_KINDS_PER_DEPARTMENT = 4


def categories(kind: int) -> tuple[str, str]:
    """Return the categories of the items of a kind: the department, and the kind itself."""
    return _DEPARTMENTS[kind // _KINDS_PER_DEPARTMENT], KINDS[kind].names[0]


def describe(kind: int, copy: int) -> tuple[str, str]:
    """Return the title and the description of an item.

    Args:
        kind: an index in `KINDS`.
        copy: the item's number among the items of its kind, counted from 0. The first 27 have distinct titles; after
            that, titles repeat with a model number.
    """
    product = KINDS[kind]
    copy, name = divmod(copy, len(product.names))
    copy, material = divmod(copy, len(product.materials))
    model, size = divmod(copy, len(product.sizes))
    suffix = "" if model == 0 else f", model {model + 1}"
    title = f"{product.names[name]}, {product.materials[material]}, {product.sizes[size]}{suffix}"
    use = product.uses[(name + material) % len(product.uses)]
    care = product.cares[(material + size) % len(product.cares)]
    return title, f"{use} Made of {product.materials[material]}. {care}"
