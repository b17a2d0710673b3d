"""Robust predictions and faithful explanations of classifiers, by denoised smoothing.

    smoothing = smoothing_of(model, to_pm1(0.25, "01"))     # a denoiser of pixels, and its noise
    smoothed = Smoothed(classifier, smoothing, partial(token_maps, "rollout", classifier))
    label = certify(smoothed, image, n=1000)                # a class and a radius, or an abstention
    found = mean_map(smoothed, image, label.selected, m=1000)
    whole = region(smoothed, found, dimensions=image.numel(), k=4, beta=0.5, gamma=0.1, label=label)
    print(json.dumps(as_json(whole)))

Images are float tensors (B, C, H, W) in [-1, 1], and so are noise and radii measured, unless a name
says otherwise: see `diffit.explain.units`.
"""
