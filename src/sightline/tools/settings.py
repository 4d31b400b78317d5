"""What may vary about crops and conversations. Pure configuration: a recipe reads it without loading an image."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Control", "CropPolicy", "CropSettings", "ModeConfig", "SyntaxName", "TurnSettings"]

CropPolicy = Literal["strict", "lenient", "parity"]
SyntaxName = Literal["box", "tool_call"]
Control = Literal["none", "no-crop", "random-crop", "blank-crop"]


class _Settings(BaseModel):
    # validators are built at first use: importing a method or a help page stays light
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Crops(_Settings):
    """What every crop has."""

    padding: float = Field(
        default=0.1, ge=0, le=4, description="margin on each side of a box, as a share of that side of the box"
    )
    min_side: int = Field(
        default=28, ge=1, le=65536, description="least width and height of a crop, in pixels of the original image"
    )
    max_aspect: float = Field(
        default=200.0, ge=1, description="longest permitted side of a crop, in multiples of the other"
    )
    max_crops: int = Field(
        default=4, ge=1, le=64, description="crops per question or conversation; further boxes get none"
    )
    min_pixels: int | None = Field(
        default=None,
        ge=1,
        le=2**24,
        description="crops of a smaller area are enlarged to it, in pixels; null: as they are",
    )
    max_pixels: int | None = Field(
        default=None, ge=1, description="crops of a larger area are reduced to it, in pixels; null leaves them"
    )

    @model_validator(mode="after")
    def _budget_in_order(self) -> _Crops:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels must not exceed max_pixels")
        return self


class CropSettings(_Crops):
    """How a box becomes a crop.

    `strict` cuts only boxes that are right as they stand. `lenient` orders the corners, moves the box into the image
    and grows it to `min_side`. `parity` keeps the geometry of the Ground-R1 release (arXiv 2505.20272): no padding,
    no lower clamp (black beyond the border), and the full image where there is nothing to cut.
    """

    policy: CropPolicy = Field(
        default="lenient",
        description="strict: an unusable box gets an error; lenient: it is repaired; parity: the Ground-R1 release",
    )


class TurnSettings(_Settings):
    """How a conversation with crops runs."""

    syntax: SyntaxName = Field(
        default="box", description="how the policy asks for a crop: a <box> tag, or a <tool_call> of the zoom tool"
    )
    max_turns: int = Field(default=5, ge=1, le=64, description="replies per conversation; the last gets no crop")
    policy: CropPolicy = Field(
        default="lenient",
        description="what becomes of an unusable box: strict tells the policy, lenient repairs it, parity does as the "
        "Ground-R1 release",
    )
    repeat_template: bool = Field(default=False, description="repeat the whole instruction with every crop")


class ModeConfig(_Crops):
    """What may vary about the crops of a mode. The defaults are the ones the figures of this library use."""

    duplicate_iou: float = Field(
        default=0.9, gt=0, le=1, description="a box that overlaps an earlier one by more than this IoU is not cropped"
    )
    order: Literal["original-first", "crops-first"] = Field(
        default="original-first", description="order of the images in the second pass of a crop mode"
    )
    control: Control = Field(
        default="none",
        description="what stands in for the crops, to measure what they are worth: no-crop shows the original alone, "
        "random-crop rectangles of the same size elsewhere, blank-crop grey ones",
    )
    turns: TurnSettings = Field(default=TurnSettings(), description="the conversation of the mode `turns`")
    forced_prefix: str = Field(
        default="", description="begins the first reply in place of the policy and is left out when it is read"
    )

    def crops(self, policy: CropPolicy = "lenient") -> CropSettings:
        """The settings of the crop tool."""
        return CropSettings(policy=policy, **{name: getattr(self, name) for name in _Crops.model_fields})
