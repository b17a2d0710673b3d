"""Tasks that no operator describes: a model learns to undo them from pairs that are made here."""

from diffit.restoration.degrade import camera, light, overlay, weather
from diffit.restoration.task import Task

LEARNED = (
    Task(
        "realsr4",
        "real-world super-resolution: blur, noise and JPEG, twice, four times too small",
        synthesise=camera.real_world,
    ),
    Task("derain", "streaks of rain", synthesise=weather.rain),
    Task("deraindrop", "drops of rain on the lens", synthesise=weather.raindrops),
    Task("desnow", "flakes of snow", synthesise=weather.snow),
    Task("dehaze", "haze that grows with distance", synthesise=weather.haze),
    Task("lowlight", "too little light, with its noise", synthesise=light.low_light),
    Task("deshadow", "a shadow across the image", synthesise=light.shadow),
    Task("dewatermark", "half-transparent letters", synthesise=overlay.watermark),
)
