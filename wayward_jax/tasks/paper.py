"""The paper's five tasks, with the templates and label words of its code (`get_prompts`)."""

from wayward_jax.tasks.task import Task

SENTIMENT_TEMPLATES = ("A %s one . ", "It was %s . ", "All in all %s . ", "A %s piece . ")
SUBJECTIVITY_TEMPLATES = ("This is %s . ", "It's all %s . ", "It's %s . ", "Is it %s ? ")

TASKS = {
    task.name: task
    for task in (
        Task(
            name="sst2",
            labels=("negative", "positive"),
            templates=SENTIMENT_TEMPLATES,
            label_words=("terrible", "great"),
        ),
        Task(
            name="sst5",
            labels=("very negative", "negative", "neutral", "positive", "very positive"),
            templates=SENTIMENT_TEMPLATES,
            label_words=("terrible", "bad", "okay", "good", "great"),
        ),
        Task(
            name="agnews",
            labels=("World", "Sports", "Business", "Sci/Tech"),
            templates=("Topic: %s. ", "Subject: %s. ", "This is about %s. ", "It is about %s. "),
            label_words=("World", "Sports", "Business", "Technology"),
            max_length=256,
        ),
        Task(
            name="trec",
            labels=("description", "entity", "abbreviation", "human", "location", "number"),
            templates=("%s : ", "Q: %s : ", "Why %s ? ", "Answer: %s . "),
            label_words=("Description", "Entity", "Expression", "Human", "Location", "Number"),
        ),
        Task(
            name="subj",
            labels=("subjective", "objective"),
            templates=SUBJECTIVITY_TEMPLATES,
            label_words=("subjective", "objective"),
            max_length=256,
        ),
    )
}

LMBFF_FOLDERS = {"sst2": "SST-2", "sst5": "sst-5"}  # where LM-BFF's spelling is not ours
