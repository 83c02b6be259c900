"""LIBERO's suites, and LIBERO-PRO's variants of them: which tasks there are, and where the package
has them.

The names of tasks are ours, short enough for a table; `FILES` has LIBERO's own, in its order.
Knows no package: what tasks there are can be asked without it.
"""

# What LIBERO calls a task of picking something up, but for the thing.
_BASKET = "pick_up_the_{}_and_place_it_in_the_basket"
_PLATE = "pick_up_the_black_bowl_{}_and_place_it_on_the_plate"
_GROCERIES = (
    "alphabet_soup", "cream_cheese", "salad_dressing", "bbq_sauce", "ketchup", "tomato_sauce",
    "butter", "milk", "chocolate_pudding", "orange_juice",
)  # fmt: skip
_PLACES = {
    "between_plate_ramekin": "between_the_plate_and_the_ramekin",
    "next_to_ramekin": "next_to_the_ramekin",
    "table_center": "from_table_center",
    "on_cookie_box": "on_the_cookie_box",
    "in_top_drawer": "in_the_top_drawer_of_the_wooden_cabinet",
    "on_ramekin": "on_the_ramekin",
    "next_to_cookie_box": "next_to_the_cookie_box",
    "on_stove": "on_the_stove",
    "next_to_plate": "next_to_the_plate",
    "on_cabinet": "on_the_wooden_cabinet",
}

# Suite → our name of a task → LIBERO's.
FILES: dict[str, dict[str, str]] = {
    "libero_object": {name: _BASKET.format(name) for name in _GROCERIES},
    "libero_spatial": {name: _PLATE.format(place) for name, place in _PLACES.items()},
    "libero_goal": {
        "open_middle_drawer": "open_the_middle_drawer_of_the_cabinet",
        "bowl_on_stove": "put_the_bowl_on_the_stove",
        "bottle_on_cabinet": "put_the_wine_bottle_on_top_of_the_cabinet",
        "open_drawer_bowl_inside": "open_the_top_drawer_and_put_the_bowl_inside",
        "bowl_on_cabinet": "put_the_bowl_on_top_of_the_cabinet",
        "push_plate": "push_the_plate_to_the_front_of_the_stove",
        "cheese_in_bowl": "put_the_cream_cheese_in_the_bowl",
        "turn_on_stove": "turn_on_the_stove",
        "bowl_on_plate": "put_the_bowl_on_the_plate",
        "bottle_on_rack": "put_the_wine_bottle_on_the_rack",
    },
    "libero_10": {
        "soup_and_sauce": "LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket",
        "cheese_and_butter": "LIVING_ROOM_SCENE2_put_both_the_cream_cheese_box_and_the_butter_in_the_basket",
        "stove_and_moka_pot": "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it",
        "bowl_in_drawer": "KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it",
        "mugs_on_plates": "LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_and_put_the_yellow_and_white_mug_on_the_right_plate",
        "book_in_caddy": "STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy",
        "mug_and_pudding": "LIVING_ROOM_SCENE6_put_the_white_mug_on_the_plate_and_put_the_chocolate_pudding_to_the_right_of_the_plate",
        "soup_and_cheese": "LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket",
        "moka_pots": "KITCHEN_SCENE8_put_both_moka_pots_on_the_stove",
        "mug_in_microwave": "KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it",
    },
}  # fmt: skip

# Our split → what LIBERO-PRO appends to a suite's name. The names of its tasks stay, whatever they
# ask for.
VARIANTS = {
    "unseen_wordings": "_lan",
    "unseen_objects": "_object",
    "unseen_places": "_swap",
    "unseen_tasks": "_task",
}


def folder(suite: str, split: str) -> str:
    """The package's folder of a suite's tasks in a split; its own where the split is no variant."""
    return suite + VARIANTS.get(split, "")


def family(suite: str, task: str) -> str:
    """What a task is counted under in reports: what is done in it."""
    if suite in ("libero_object", "libero_spatial"):
        return "pick_place"
    if suite == "libero_10":
        return "two_steps"
    return {
        "open_middle_drawer": "drawer",
        "open_drawer_bowl_inside": "drawer",
        "push_plate": "push",
        "turn_on_stove": "turn",
    }.get(task, "pick_place")
