"""Chinese captions: measure words, no articles, no plural."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .scenes import Group

if TYPE_CHECKING:
    from .captions import Plan

# noun and its measure word
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("圆形", "个"), ("圆圈", "个"), ("圆点", "个")),
    "square": (("正方形", "个"), ("方块", "个"), ("方形", "个")),
    "triangle": (("三角形", "个"), ("三角", "个")),
    "star": (("星星", "颗"), ("五角星", "颗"), ("星形", "个")),
    "heart": (("爱心", "颗"), ("心形", "个"), ("心", "颗")),
    "cross": (("十字", "个"), ("十字形", "个")),
    "ring": (("圆环", "个"), ("环", "个")),
    "moon": (("月亮", "个"), ("月牙", "弯"), ("弯月", "轮")),
    "arrow": (("箭头", "个"),),
    "house": (("房子", "座"), ("小屋", "间"), ("房屋", "座")),
}
COLOURS = {
    "red": "红",
    "blue": "蓝",
    "green": "绿",
    "yellow": "黄",
    "white": "白",
    "black": "黑",
    "orange": "橙",
    "purple": "紫",
    "pink": "粉",
    "brown": "棕",
    "turquoise": "青绿",
    "grey": "灰",
}
SIZES = {"small": ("小", "小小的", "很小的"), "large": ("大", "很大的", "巨大的"), "middle": ("",)}
NUMBERS = {1: "一", 2: "两", 3: "三", 4: "四"}
PLACES = {
    "left": ("左边", "画面左侧"),
    "right": ("右边", "画面右侧"),
    "top": ("上方", "画面上半部分"),
    "bottom": ("下方", "画面下半部分"),
    "middle": ("中间", "画面正中"),
}
RELATIONS = {
    "left": ("左边", "左侧"),
    "right": ("右边", "右侧"),
    "above": ("上面", "上方"),
    "below": ("下面", "下方"),
}
TEXTURES = {
    "plain": ("纯色", "单色"),
    "striped": ("条纹",),
    "dotted": ("圆点花纹", "波点"),
    "checkered": ("格子", "方格"),
    "wavy": ("波浪纹", "波纹"),
    "cloudy": ("云雾状", "斑驳"),
}
GROUNDS = ("背景", "背景", "背景", "底色", "墙纸", "纸面")
KINDS = ("图片", "照片", "插画", "图画", "装饰画", "海报", "贴纸")
WITH_GROUND = (
    "{ground}上的{things}",
    "{ground}上有{things}",
    "{things}，{ground}",
    "{kind}：{things}，{ground}",
    "在{ground}上画着{things}",
    "这张{kind}的{ground}上有{things}",
    "我用{things}和{ground}做了这张{kind}",
)
WITHOUT_GROUND = (
    "一张画着{things}的{kind}",
    "{kind}里有{things}",
    "可以看到{things}的{kind}",
    "这是{things}",
)
DETAILS = (
    "，手工制作",
    "，系列第{n}号",
    "（第{n}页）",
    "，适合儿童房",
    "，摄于{year}年",
    "，画于{year}年",
    "，我最喜欢的一张",
    "，编号{n}",
)


def write(plan: Plan) -> str:
    """One caption."""
    choose = plan.dice.choice
    words = {"things": _things(plan), "kind": choose(KINDS), "ground": _ground(plan)}
    text = choose(WITH_GROUND if plan.ground else WITHOUT_GROUND).format(**words)
    if plan.dice.random() < 0.35:
        text += choose(DETAILS).format(n=plan.dice.randint(2, 900), year=plan.dice.randint(1990, 2024))
    return text + ("。" if plan.dice.random() < 0.3 else "")


def _things(plan: Plan) -> str:
    named = [_group(group, plan) for group in plan.groups]
    if plan.relation:
        return f"{named[1]}{plan.dice.choice(RELATIONS[plan.relation])}的{named[0]}"
    if plan.place:
        named[0] = f"{plan.dice.choice(PLACES[plan.place])}的{named[0]}"
    return "、".join(named[:-1]) + plan.dice.choice(("和", "和", "与")) + named[-1] if named[1:] else named[0]


def _group(group: Group, plan: Plan) -> str:
    noun, measure = plan.dice.choice(NOUNS[group.shape])
    size = plan.dice.choice(SIZES[group.size]) if plan.dice.random() < 0.6 else ""
    colour = COLOURS[group.colour] + plan.dice.choice(("色", "色的", "色的"))
    return f"{NUMBERS[group.count]}{measure}{size}{colour}{noun}"


def _ground(plan: Plan) -> str:
    if plan.ground is None:
        return ""
    colour = COLOURS[plan.ground] + "色"
    texture = plan.dice.choice(TEXTURES[plan.texture]) if plan.texture else ""
    place = plan.dice.choice(GROUNDS)
    if texture and plan.dice.random() < 0.3:
        return (
            f"带{texture}图案的{colour}{place}" if plan.texture != "plain" else f"{texture}的{colour}{place}"
        )
    return f"{colour}{texture}{place}"
