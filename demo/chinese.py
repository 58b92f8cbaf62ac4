"""Chinese captions: measure words, no articles, no plural."""

from __future__ import annotations

from .plan import Plan
from .scenes import Group

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
GROUNDS = {
    "grass": ("草地上", "绿色的草地上", "草坪上"),
    "water": ("水面上", "水里", "湖面上"),
    "sand": ("沙滩上", "沙地上", "沙子上"),
    "snow": ("雪地里", "雪地上", "白雪上"),
    "night": ("夜空中", "夜空里", "黑夜的天空中"),
    "bricks": ("砖墙上", "砖墙前", "红砖墙上"),
    "wood": ("木桌上", "木板上", "木头上"),
    "chessboard": ("棋盘上", "棋盘格上", "国际象棋棋盘上"),
    "curtain": ("幕布前", "丝绒布上", "丝绒幕布前"),
    "stone": ("石头上", "水泥地上", "岩石上"),
    "wallpaper": ("粉色墙纸上", "波点墙纸上", "墙纸上"),
    "tiles": ("瓷砖上", "浴室的瓷砖上", "瓷砖墙上"),
}
KINDS = ("图片", "照片", "插画", "图画", "装饰画", "海报", "贴纸")
TEMPLATES = (
    "{ground}的{things}",
    "{ground}有{things}",
    "{ground}有{things}",
    "{kind}：{ground}的{things}",
    "这张{kind}里，{ground}有{things}",
    "我在{ground}看到了{things}",
    "可以看到{ground}的{things}",
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
    ground = choose(GROUNDS[plan.ground]) if plan.ground else ""
    template = choose(TEMPLATES) if plan.ground else "这张{kind}里有{things}"
    text = template.format(things=_things(plan), kind=choose(KINDS), ground=ground)
    if plan.dice.random() < 0.25:
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
    size = plan.dice.choice(SIZES[group.size]) if plan.dice.random() < 0.4 else ""
    colour = COLOURS[group.colour] + plan.dice.choice(("色", "色的", "色的"))
    return f"{NUMBERS[group.count]}{measure}{size}{colour}{noun}"
