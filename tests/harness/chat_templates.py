"""Chat templates in the styles of models in use: with tools, thoughts, and roles of any name."""

QWEN_3 = """\
{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}\
{% endif %}{{ '# Tools\n\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}\
{{ '\n</tools><|im_end|>\n' }}{% elif messages[0].role == 'system' %}\
{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}\
{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}\
{% if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}\
{{ message.content or '' }}{% for call in message.tool_calls or [] %}\
{{ '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\n' }}\
{{ '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}\
{% elif message.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}\
{{ '<|im_start|>user' }}{% endif %}{{ '\n<tool_response>\n' + message.content + '\n</tool_response>' }}\
{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}\
{% elif message.role != 'system' or not loop.first %}\
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
QWEN_SPECIAL = ["<|im_start|>", "<|im_end|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]

LLAMA_3 = """\
{{ '<|begin|>' }}{% for message in messages %}{% if message.role == 'tool' %}\
{{ '<|start_header|>ipython<|end_header|>\n\n' + message.content + '<|eot|>' }}\
{% elif message.tool_calls %}{{ '<|start_header|>assistant<|end_header|>\n\n' }}\
{% for call in message.tool_calls %}{{ call.function | tojson }}{% endfor %}{{ '<|eot|>' }}\
{% else %}{{ '<|start_header|>' + message.role + '<|end_header|>\n\n' }}{{ message.content | trim + '<|eot|>' }}\
{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|start_header|>assistant<|end_header|>\n\n' }}{% endif %}"""
LLAMA_SPECIAL = ["<|begin|>", "<|start_header|>", "<|end_header|>", "<|eot|>"]

MISTRAL = """\
{{ '<s>' }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}\
{% elif message.role == 'tool' %}{{ '[TOOL_RESULTS] {"content": ' + message.content | tojson + '}[/TOOL_RESULTS]' }}\
{% elif message.tool_calls %}{{ '[TOOL_CALLS] ' + message.tool_calls[0].function.name + '</s>' }}\
{% elif message.role == 'assistant' %}{{ ' ' + message.content + '</s>' }}\
{% elif message.role == 'system' %}{{ '[SYSTEM_PROMPT] ' + message.content + '[/SYSTEM_PROMPT]' }}\
{% else %}{{ raise_exception('Only user, system, assistant and tool roles are supported!') }}{% endif %}{% endfor %}"""
MISTRAL_SPECIAL = [
    *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
]

DEEPSEEK = """\
{{ '<bos>' }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}{% endif %}{% endfor %}\
{% for message in messages %}{% if message.role == 'user' %}{{ '<User>' + message.content }}\
{% elif message.role == 'assistant' and message.tool_calls %}\
{{ '<Assistant><calls>' + message.tool_calls[0].function.name + '</calls><eos>' }}\
{% elif message.role == 'assistant' %}{% if messages[loop.index0 - 1].role == 'tool' and not loop.first %}\
{{ message.content + '<eos>' }}{% else %}{{ '<Assistant>' + message.content + '<eos>' }}{% endif %}\
{% elif message.role == 'tool' %}{{ '<outputs><output>' + message.content + '</output></outputs>' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<Assistant><think>\n' }}{% endif %}"""
DEEPSEEK_SPECIAL = [
    *("<bos>", "<eos>", "<User>", "<Assistant>", "<calls>", "</calls>", "<outputs>", "</outputs>", "<output>"),
    *("</output>", "<think>", "</think>"),
]

TOOL_STYLES = {
    "qwen 3": (QWEN_3, QWEN_SPECIAL, "<|im_end|>"),
    "llama 3": (LLAMA_3, LLAMA_SPECIAL, "<|eot|>"),
    "mistral": (MISTRAL, MISTRAL_SPECIAL, "</s>"),
    "deepseek": (DEEPSEEK, DEEPSEEK_SPECIAL, "<eos>"),
}
"""Template, special tokens and the token that ends an answer, by name."""
