"""Evaluation and its results; nothing is rendered here.

``results``                    what a report holds
``metrics``                    how well scores tell classes apart, with intervals
``baselines``                  what text gives away without any model
``cross_validated_baselines``  the same where labelled texts are all there is
``offline_scores``             the verdicts that a monitor would reach, on requests in a file
``judge``, ``labelled``        a bundle on labelled requests
``heatmaps``                   example conversations, token by token
``conclusions``, ``wording``   what the numbers say, in sentences
"""
