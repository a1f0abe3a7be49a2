from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PictureStyle(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_STYLE_UNSPECIFIED: _ClassVar[PictureStyle]
    PICTURE_STYLE_AUTO: _ClassVar[PictureStyle]
    PICTURE_STYLE_HEATMAP: _ClassVar[PictureStyle]
    PICTURE_STYLE_SIGNED: _ClassVar[PictureStyle]
    PICTURE_STYLE_OVERLAY: _ClassVar[PictureStyle]
    PICTURE_STYLE_TOP_K: _ClassVar[PictureStyle]
    PICTURE_STYLE_OBJECT_MASK: _ClassVar[PictureStyle]

class PictureChannels(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_CHANNELS_UNSPECIFIED: _ClassVar[PictureChannels]
    PICTURE_CHANNELS_AUTO: _ClassVar[PictureChannels]
    PICTURE_CHANNELS_MAX_ABS: _ClassVar[PictureChannels]
    PICTURE_CHANNELS_SUM: _ClassVar[PictureChannels]
    PICTURE_CHANNELS_MEAN: _ClassVar[PictureChannels]

class PictureColors(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_COLORS_UNSPECIFIED: _ClassVar[PictureColors]
    PICTURE_COLORS_AUTO: _ClassVar[PictureColors]
    PICTURE_COLORS_INFERNO: _ClassVar[PictureColors]
    PICTURE_COLORS_VIRIDIS: _ClassVar[PictureColors]
    PICTURE_COLORS_GRAY: _ClassVar[PictureColors]
    PICTURE_COLORS_BLUE_RED: _ClassVar[PictureColors]

class PictureBackdrop(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_BACKDROP_UNSPECIFIED: _ClassVar[PictureBackdrop]
    PICTURE_BACKDROP_GRAY: _ClassVar[PictureBackdrop]
    PICTURE_BACKDROP_COLOR: _ClassVar[PictureBackdrop]
PICTURE_STYLE_UNSPECIFIED: PictureStyle
PICTURE_STYLE_AUTO: PictureStyle
PICTURE_STYLE_HEATMAP: PictureStyle
PICTURE_STYLE_SIGNED: PictureStyle
PICTURE_STYLE_OVERLAY: PictureStyle
PICTURE_STYLE_TOP_K: PictureStyle
PICTURE_STYLE_OBJECT_MASK: PictureStyle
PICTURE_CHANNELS_UNSPECIFIED: PictureChannels
PICTURE_CHANNELS_AUTO: PictureChannels
PICTURE_CHANNELS_MAX_ABS: PictureChannels
PICTURE_CHANNELS_SUM: PictureChannels
PICTURE_CHANNELS_MEAN: PictureChannels
PICTURE_COLORS_UNSPECIFIED: PictureColors
PICTURE_COLORS_AUTO: PictureColors
PICTURE_COLORS_INFERNO: PictureColors
PICTURE_COLORS_VIRIDIS: PictureColors
PICTURE_COLORS_GRAY: PictureColors
PICTURE_COLORS_BLUE_RED: PictureColors
PICTURE_BACKDROP_UNSPECIFIED: PictureBackdrop
PICTURE_BACKDROP_GRAY: PictureBackdrop
PICTURE_BACKDROP_COLOR: PictureBackdrop

class Rendering(_message.Message):
    __slots__ = ("styles", "percentile", "alpha", "top", "channels", "colors", "backdrop", "foreground", "background", "smoothing")
    STYLES_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    COLORS_FIELD_NUMBER: _ClassVar[int]
    BACKDROP_FIELD_NUMBER: _ClassVar[int]
    FOREGROUND_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    SMOOTHING_FIELD_NUMBER: _ClassVar[int]
    styles: _containers.RepeatedScalarFieldContainer[PictureStyle]
    percentile: float
    alpha: float
    top: float
    channels: PictureChannels
    colors: PictureColors
    backdrop: PictureBackdrop
    foreground: float
    background: float
    smoothing: float
    def __init__(self, styles: _Optional[_Iterable[_Union[PictureStyle, str]]] = ..., percentile: _Optional[float] = ..., alpha: _Optional[float] = ..., top: _Optional[float] = ..., channels: _Optional[_Union[PictureChannels, str]] = ..., colors: _Optional[_Union[PictureColors, str]] = ..., backdrop: _Optional[_Union[PictureBackdrop, str]] = ..., foreground: _Optional[float] = ..., background: _Optional[float] = ..., smoothing: _Optional[float] = ...) -> None: ...
