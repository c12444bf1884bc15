"""Where the images of the published benchmarks lie below a folder, as docs/datasets.md lays them out."""

# The images to train on and to score, as `datasets.open_images` opens them; {} is the folder.
PUBLISHED_SPLITS = {
    "voc2007": ("voc:{}/VOCdevkit/VOC2007,split=trainval", "voc:{}/VOCdevkit/VOC2007,split=test"),
    "coco2014": (
        "coco:{}/coco,split=train2014,unannotated=drop",
        "coco:{}/coco,split=val2014,unannotated=drop",
    ),
    "nus_wide": ("nus_wide:{}/nus-wide,split=train", "nus_wide:{}/nus-wide,split=test"),
    "scenes": ("scenes:train,number=4000", "scenes:test"),
}
