"""Pictures of what a model looks at; the command line is tools/visualize.py.

    sampling          points where DCNv3 and DCNv4 sample, and how they add up over layers
    receptive_field   which input pixels an output pixel depends on
    grad_cam          which places speak for a class
    feature_pca       feature maps as colours
    pictures          images in and out of the network
    drawing           figures with title, caption and legend

The first four compute with torch alone and return arrays; each has a function `draw` that needs
matplotlib.
"""
