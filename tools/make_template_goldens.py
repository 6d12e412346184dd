#!/usr/bin/env python3
"""Renders chat templates with Jinja2, as transformers configures it, for tests/goldens.

  python3 -m venv /tmp/jinja && /tmp/jinja/bin/pip install 'jinja2==3.1.6'
  /tmp/jinja/bin/python tools/make_template_goldens.py > tests/goldens/chat_templates.jsonl
  /tmp/jinja/bin/python tools/make_template_goldens.py --cases 3000 --seed 7 > /tmp/more.jsonl
  python3.11 tools/make_template_goldens.py --unicode > src/io/jinja/unicode_tables.h

A line of the output is one of
  {"command": ...}                                        the first
  {"name": ..., "template": ..., "bos": ..., "eos": ...}  a template, before its cases
  {"t": name, "messages": [...], "tools": ..., "gen": bool, "extra": {...}, "out": text}
  {"t": name, ..., "error": part of the message}          Jinja2 refused to render it
"""

import argparse
import json
import random
import sys

BOS, EOS = "<beginning_of_sentence>", "<end_of_sentence>"

TEMPLATES = {
    # MiniMax-Text-01's; src/io/chat_template.cc holds the same text.
    "text01": (
        "{% for message in messages %}"
        "{% set content = message['content'] %}"
        "{% if content is string %}{% set text = content %}"
        "{% elif content %}{% set text = content[0]['text'] %}"
        "{% else %}{% set text = '' %}{% endif %}"
        "{% if message['role'] == 'system' %}"
        "{{ '<beginning_of_sentence>system ai_setting=assistant\\n' + text"
        " + '<end_of_sentence>\\n' }}"
        "{% elif message['role'] == 'user' %}"
        "{{ '<beginning_of_sentence>user name=user\\n' + text + '<end_of_sentence>\\n' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ '<beginning_of_sentence>ai name=assistant\\n' }}"
        "{% generation %}{{ text + '<end_of_sentence>\\n' }}{% endgeneration %}"
        "{% elif message['role'] == 'function' or message['role'] == 'tool' %}"
        "{{ '<beginning_of_sentence>system function_response=functions\\n' + '{\"name\": \"'"
        " + message['name'] + '\", \"response\": ' + text + '}' + '<end_of_sentence>\\n' }}"
        "{% else %}{{ raise_exception('the role ' ~ message['role']"
        " ~ ' is none of system, user, assistant, function, tool') }}"
        "{% endif %}{% endfor %}"
        "{% if tools %}{% for function in tools %}"
        "{{ '<beginning_of_sentence>system function_setting=functions\\n' + function | tojson"
        " + '<end_of_sentence>\\n' }}"
        "{% endfor %}{% endif %}"
        "{% if add_generation_prompt %}{{ '<beginning_of_sentence>ai name=assistant\\n' }}"
        "{% endif %}"
    ),
    "nano": (
        "{% for m in messages %}{{ '<beginning_of_sentence>' }}{% if m['role'] == 'system' %}"
        "{{ 'system ai_setting=assistant\\n' }}{% elif m['role'] == 'assistant' %}"
        "{{ 'ai name=assistant\\n' }}{% else %}{{ 'user name=user\\n' }}{% endif %}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{{ m['content'][0]['text'] }}{% endif %}{{ '<end_of_sentence>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<beginning_of_sentence>ai name=assistant\\n' }}"
        "{% endif %}"
    ),
    "chatml": """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if loop.first and message.content is not string %}{% endif %}
{{ '<|im_start|>' + message.role + '\\n' + (message.content | default('', true) | string | trim) \
+ '<|im_end|>' }}{# one line a message #}

{% endfor %}
{% if add_generation_prompt -%}
    {{ '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama": """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' and messages[0]['content'] is string %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + (date_string if date_string is defined else "26 Jul 2024") + "\\n\\n" }}
{%- if tools is not none and tools_in_system | default(true) %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- eos_token }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- if message['content'] is string %}
            {{- message['content'] | trim }}
        {%- else %}
            {%- for part in message['content'] %}
                {%- if part.type == 'text' %}{{ part.text | trim }}{% endif %}
            {%- endfor %}
        {%- endif %}
        {{- eos_token }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" + eos_token }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and \
message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("conversation roles must alternate user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function | default(tool) %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- ', "id": "' ~ ('call%05d' if false else 'call' ~ loop.index) ~ '"}' }}
            {%- else %}
                {{- ', "id": "' + tool_call.id + '"}' }}
            {%- endif %}
            {{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
""",
    "thinker": """\
{% macro render(m, depth=0) -%}
  {%- set content = m.content if m.content is string else (m.content | map(attribute='text') \
| join('|')) if m.content else '' -%}
  {%- if '</think>' in content -%}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
  {%- endif -%}
  <|{{ m.role|upper }}|>{{ content | replace('\\t', '    ') }}
{%- endmacro %}
{%- set ns = namespace(last=-1, seen='') -%}
{%- for m in messages[::-1] -%}
  {%- set index = (messages|length - 1) - loop.index0 -%}
  {%- if m.role == 'user' and ns.last < 0 -%}{% set ns.last = index %}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
  {%- if m.role == 'tool' -%}
    {%- if loop.previtem is defined and loop.previtem.role != 'tool' %}<tools>{% endif -%}
    {{ m.content if m.content is string else m.content | tojson }}
    {%- if loop.last or loop.nextitem.role != 'tool' %}</tools>{% endif %}
    {%- continue -%}
  {%- endif -%}
  {{- render(m, depth=loop.index) -}}
  {%- if loop.index0 == ns.last %}<|LAST|>{% endif -%}
  {%- if m.tool_calls -%}
    {%- for c in m.tool_calls -%}
      {%- set args = c.function.arguments -%}
      {{ '\\n' ~ c.function.name ~ '(' }}
      {%- for k, v in args.items() -%}
        {{ k }}={{ v if v is string else v | tojson(ensure_ascii=False) }}
        {%- if not loop.last %}, {% endif -%}
      {%- else -%}
        no arguments
      {%- endfor -%}
      {{ ')' }}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if tools %}

{{ tools | map(attribute='name') | select('defined') | list }}
{% for tool in tools %}
    {%- if loop.index > 2 %}{% break %}{% endif %}
* {{ tool.name | default('?') | title }}: {{ (tool.description | default('none'))[:20] }}
{% endfor %}
{%- endif %}
{%- if add_generation_prompt %}<|ASSISTANT|>{{ '<think>\\n' if enable_thinking | default(false) }}
{%- endif %}
""",
    "values": """\
{%- set things = [1, 2.5, -0.0, 1e16, 1e-5, true, none, 'it\\'s "so"', ('x',), {'a': [1, {}]}] %}
{{ things }}
{{ things | tojson }} {{ things[::-2] | tojson(indent=1) }}
{{ messages | tojson(separators=(',', ':')) }}
{%- for m in messages %}
{{ m }}
{{ m.keys() | list }} {{ m | length }} {{ m.get('name', 'nobody') }} {{ m.nothing }}
{{ (m.content | string).title() }} {{ m.content | string | title }}
{{ (m.content | string).split() }} {{ (m.content | string)[2:-1:2] }}
{{ (m.content | string | upper).lower() | capitalize }}
{{ m.content | string | indent(2) }} {{ m.content | string | reverse }}
{{ loop.index is odd }} {{ loop.index / 2 }} {{ 7 // -loop.index }} {{ -7 % loop.index }}
{{ 'yes' if m.role in ('user', 'tool') and not m.content else 'no' }}
{%- endfor %}
{{ range(10, 0, -3) | list }} {{ 2 ** 10 }} {{ 1 < 2 <= 2 }} {{ 'a' ~ 1 ~ none }}
{% raw %}{{ not rendered }}{% endraw %}

{% set block %}
  {{ messages | selectattr('role', 'eq', 'user') | map(attribute='role') | join(', ') }}
{% endset %}
[{{ block }}] {{ messages | map(attribute='role') | sort | list }}
{% for k, v in (extra_map | default({})) | dictsort %}{{ k }}:{{ v }};{% else %}nothing{% endfor %}
{{ ' padded '.strip() + 'xyx'.strip('x') }} {{ '12' | int + 1 }} {{ 'x' | float }} {{ 3.0 | int }}
""",
}

# The language itself: each line is a template, rendered for one user who says "hi".
SNIPPETS = r'''
{{ 'Hello wORLD-foo (bar' | title }}{{ 'hELLO'|capitalize }}
{{ "ǆabc ǅ ß ŉ ﬁx ᾳ ΑΣ ΑΣ. Σ".title() }} {{ "ǆabc ßx ŉ ﬁx ᾳ"|capitalize }} {{ "ΑΣ-ΣΑΣ"|title }}
{{ "straße ﬁ ŉ ΐ İ I ı".upper() }} {{ "İIΣ ΑΣΑ ΑΣ'Α ΑΣ'".lower() }}
{{ "a,b,,c".split(",") }}{{ "a,b,,c".split(",",1) }}{{ "a,b,,c".rsplit(",",1) }}{{ "  a b  c ".split() }}{{ "  a b  c ".split(none,1) }}{{ "  a b  c ".rsplit(none,1) }}{{ "  a b  c ".rsplit(maxsplit=0) }}{{ "  a b  c ".split(maxsplit=0) }}
{{ "a\nb\r\nc\x0bd\u2028e\n".splitlines() }}{{ "a\nb\r\n".splitlines(true) }}
{{ "aaa".replace("a","b",2) }}{{ "abc".replace("","-") }}{{ "abc".replace("","-",2) }}{{ ""|replace("","x") }}
{{ [1,2,3][::-1] }}{{ "abcdef"[::-2] }}{{ "abcdef"[-3:] }}{{ "abcdef"[10:] }}{{ "abcdef"[:-10] }}{{ (1,2,3)[1:] }}{{ "äöü"[1] }}{{ "äöü"[-1] }}{{ "abc"[5] }}
{{ 1/3 }} {{ 2/1 }} {{ -7//2 }} {{ -7%3 }} {{ 7%-3 }} {{ 7.5//2 }} {{ -7.5%2 }} {{ 2**-1 }} {{ 2**0.5 }} {{ 1e22 }} {{ 1e15 }} {{ 123456789.123 }} {{ 1e-4 }} {{ 0.1+0.2 }} {{ -0.0 }} {{ 1_000 }} {{ 1.5e3 }}
{{ true + 1 }} {{ true == 1 }} {{ 1 == 1.0 }} {{ 'a' < 'b' < 'c' }} {{ [1,2] < [1,3] }} {{ 1 in [1.0] }} {{ 'a' not in 'b' }} {{ none == none }} {{ not 1 == 2 }} {{ none is none }}
{{ 1 if 0 }}|{{ 1 if 0 else 2 if 0 else 3 }} {{ (1 if 0) is defined }}
{{ {'a':1,'b':[1,2]} }} {{ {1:2,true:3} }} {{ {'a':1}.items() }} {{ {'a':1}.keys() }} {{ {'a':1}.values()|list }} {{ {'a':1}|items|list }} {{ dict(a=1,b=2) }} {{ dict({'x':1},y=2) }}
{{ (1,) }} {{ () }} {{ (1) }} {{ 1,2 }} {{ [] }} {{ range(3) }} {{ range(5,0,-2) }} {{ range(3)|list }}
{{ 'it\'s' }} {{ ['it\'s', "q\"", 'b\'"', 'n\n\t\\', '\x07\x7f\u200b\xad é 😀'] }}
{{ 'x' ~ 1 ~ none ~ true ~ 1.0 ~ [1] }} {{ 1 ~ 2 + '3' }} {{ 'a' * 3 }} {{ [0] * 2 }} {{ 2 * 'ab' }} {{ 'a' * -1 }}
{{ '12'|int }} {{ ' -12 '|int }} {{ '1_0'|int }} {{ '12.7'|int }} {{ 'x'|int }} {{ 'x'|int(5) }} {{ 3.9|int }} {{ none|int }} {{ true|int }} {{ '1e3'|int }} {{ 'inf'|int }} {{ '+5'|int }} {{ '-+5'|int }}
{{ '1.5'|float }} {{ 'x'|float }} {{ 'nan'|float }} {{ '-inf'|float }} {{ '1e400'|float }} {{ '.5'|float }} {{ '5.'|float }} {{ '0x1'|float }} {{ 'infinity'|float }}
{{ [3,1,2]|sort }} {{ ['b','A','c']|sort }} {{ ['b','A','c']|sort(case_sensitive=true) }} {{ [3,1,2]|sort(reverse=true) }} {{ [{'a':2},{'a':1}]|sort(attribute='a') }} {{ {'b':1,'A':2}|dictsort }} {{ {'b':1,'A':2}|dictsort(by='value') }}
{{ [1,2]|first }} {{ [1,2]|last }} {{ 'abc'|first }} {{ 'abc'|last }} {{ []|first }} {{ {'a':1}|first }} {{ 'abc'|list }} {{ 'abc'|length }} {{ 'äö'|length }} {{ {'a':1}|length }}
{{ 'abc'|reverse }} {{ [1,2]|reverse|list }} {{ undefinedx|length }}{{ undefinedx|upper }}{{ undefinedx|list }}{{ undefinedx|default('d') }}{{ ''|default('d') }}{{ ''|default('d',true) }}{{ undefinedx|join }}
{{ [1,'a',none]|join('-') }} {{ [{'a':1},{'a':2}]|join(',',attribute='a') }} {{ 'abc'|join('.') }}
{{ ' a '|trim }}| {{ 'xax'|trim('x') }} {{ 5|trim }} {{ 'abc'.strip('ac') }} {{ '\u2003a\x1c'.strip() }}|
{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb\n\nc'|indent(2,true,true) }}|{{ 'a\nb'|indent('>>') }}|{{ ''|indent }}|
{{ {'a':[1,{'b':none}],'c':'é"\\\u2028\x01'}|tojson }} {{ {'b':1,'a':[]}|tojson(indent=2) }} {{ {'b':1,'a':{}}|tojson(sort_keys=true) }} {{ 'é😀'|tojson(ensure_ascii=true) }} {{ [1,2]|tojson(separators=(',',':')) }} {{ {1:2,none:3,true:4,1.5:5}|tojson }} {{ (1,2)|tojson }} {{ [1.0,1e100,1e16]|tojson }} {{ [1]|tojson(indent='\t') }} {{ [1,[2]]|tojson(indent=0) }}
{% for i in [1,2,3] %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a','b') }}{{ loop.changed(i//2) }}{% else %}no{% endfor %}
{% for i in [1,2,3,4] if i is even %}{{ i }}{{ loop.length }}{% endfor %}{% for i in [] %}{% else %}empty{% endfor %}{% for i in [1,2] %}{% break %}{% else %}E{% endfor %}{% for i in [1,2] %}{% if i==2 %}{% break %}{% endif %}{{i}}{% else %}E{% endfor %}{% for i in [1] %}{% continue %}{% else %}E{% endfor %}
{% set x = 1 %}{% for i in [1,2] %}{{ x }}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% set ns = namespace(a=1,b='x') %}{% for i in [1,2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c }}{{ ns['a'] }}{{ ns }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d) = 'xy' %}{{ c }}{{ d }}{% for k, v in {'a':1}.items() %}{{ k }}{{ v }}{% endfor %}{% for (a, b), c in [((1,2),3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% macro m(a, b=2, c=a) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1,3) }}{{ m(b=5,a=4) }}{{ m() }}{{ m(1)|length }}
{% macro r(n) %}{{ n }}{% if n > 0 %}{{ r(n-1) }}{% endif %}{% endmacro %}{{ r(5) }}
{% set g = 1 %}{% macro m() %}{{ g }}{% endmacro %}{% set g = 2 %}{{ m() }}{% for g in [7] %}{{ m() }}{% endfor %}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set a = 5 %}{{ a }}{% endwith %}{{ a }}|{% filter upper %}abc{{ 'd' }}{% endfilter %}{% set q | upper %}xyz{% endset %}{{ q }}
{% set g = [1,2,3]|select('odd') %}{{ g|list }}{{ g|list }}{% if []|select %}T{% endif %}{{ [1,2]|select('odd')|first }}{{ [0,1,'']|select|list }}{{ [0,1,'']|reject|list }}{{ [1,2,3]|reject('odd')|list }}
{{ [{'a':1},{'b':2}]|selectattr('a')|list }}{{ [{'a':1},{'b':2}]|selectattr('a','defined')|list }}{{ [{'a':1},{'a':2}]|rejectattr('a','equalto',1)|list }}{{ [{'a':{'b':1}}]|map(attribute='a.b')|list }}{{ [{'a':[5,6]}]|map(attribute='a.1')|list }}{{ ['a','b']|map('upper')|join }}{{ [{}]|map(attribute='x',default='D')|list }}{{ ['a-b']|map('replace','-','+')|list }}
{{ 1 is number }}{{ 1.0 is integer }}{{ true is integer }}{{ true is number }}{{ true is boolean }}{{ 'a' is string }}{{ [] is sequence }}{{ {} is mapping }}{{ 'a' is iterable }}{{ 1 is iterable }}{{ {} is sequence }}{{ {}.items() is sequence }}{{ 1 is odd }}{{ 4 is divisibleby 2 }}{{ 1 is eq 1 }}{{ 2 is in [1,2] }}{{ 'a' is not in 'abc' }}{{ x is undefined }}{{ none is none }}{{ true is true }}{{ 1 is true }}{{ range is callable }}{{ 1 is lt(2) }}
{{ '<a>' | safe }}{{ '<' ~ ('<'|safe) }}{{ '<"' + ('<'|safe) + "'&>" }}{{ ('<'|safe)|length }}{{ ['<'|safe] }}
{{- ' x' -}}  
   {%- if true -%}   y   {%- endif %}  z
   {% if true %}
   w
   {% endif %}
   {# c #}
  {#- c -#}  v  
  {%+ if true %} + {%+ endif %}
{{ 'a' }}
{% raw %}{{ x }}{% y %}{% endraw %}
{%- raw -%}  {{ x }}  {%- endraw -%}  end
{{ {'a':{'b':1}}.a.b }}{{ {'a':1}['a'] }}{{ {'a':1}.get('b') }}{{ {'a':1}.get('b',2) }}{{ {'items':1}['items'] }}{{ [[1,2]].0.1 }}{{ [1,2].5 }}{{ {'a':{}}}['a'] }}
{{ 'abc'.find('c') }}{{ 'äbc'.find('c') }}{{ 'aXbX'.count('X') }}{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}{{ 'abc'.startswith(('x','a')) }}{{ 'abc'.endswith('bc') }}{{ ','.join(['a','b']) }}{{ 'abc'.count('') }}
{{ -5|abs }} {{ -2**2 }} {{ 2**3**2 }} {{ -(1)|abs }} {{ 5-3-1 }} {{ 10/4*2 }} {{ 1 + 2 ~ 3 * 4 }} {{ not true or true }} {{ 'a' and '' or 'c' }} {{ 1 < 2 == true }} {{ [] or 'x' }}
{{ "a" "b" 'c' }} {{ '\x41\u00e9\101\q\
z' }}
{{ undefinedx }}{{ undefinedx == undefinedy }}{{ undefinedx is defined }}{{ [undefinedx] }}{{ undefinedx in [1] }}{{ 1 in undefinedx }}{{ 'x' ~ undefinedx }}
{{ {'a':1} == {'a':1.0} }}{{ [1,[2]] == [1,[2]] }}{{ (1,) == [1] }}{{ 'a' == 'a' }}{{ range(3) == range(3) }}{{ [1]+[2] }}{{ (1,)+(2,) }}{{ +5 }}{{ -true }}{{ 1 != 2 }}
{% generation %}{% set zz = 1 %}in{% endgeneration %}{{ zz }}
{% if '' %}a{% elif 0 %}b{% else %}c{% endif %}{% if 1, %}t{% endif %}{% for x in 1,2 %}{{ x }}{% endfor %}{% for x in 'aé' %}{{ x }}.{% endfor %}{% for x in {'k':1} %}{{ x }}{% endfor %}
{{ 9007199254740993 == 9007199254740992.0 }}{{ 9223372036854775807 }}{{ 5 // 0.3 }}{{ 1e308*10 }}{{ 'b' > 'a' }}{{ [1,2,3]|sort|reverse|list }}{{ {'a':1}|string }}{{ 5|string + 'x' }}
{{ 1 + 'a' }}
{{ none.x }}{{ none.x.y }}
{{ 'a' + 1 }}
{{ [1]['a'] }}{{ 'abc'['x'] }}{{ 5['x'] }}{{ 5.x }}
{{ [1,2](3) }}
{{ {[]: 1} }}
{{ [1,'a']|sort }}
{{ 1 // 0 }}
{{ undefinedx.y }}
{{ undefinedx + 1 }}
{{ undefinedx|int }}
{{ undefinedx|tojson }}
{{ {}.items()|tojson }}
{{ 1 | join }}
{{ 1 | length }}
{{ none|first }}
{{ [1]|select('odd')|length }}
{{ 'a'.split('') }}
{% set x.y = 1 %}
{% for a, b in [1] %}{% endfor %}
{% for a, b in [(1,2,3)] %}{% endfor %}
{{ 'a' in 5 }}
{{ 5 in 'a' }}
{{ "x" if }}
{% if true %}{% else %}{% else %}{% endif %}
{{ [1,2 }}
{% endfor %}
{{ 'abc }}
{% set 5 = 1 %}
{{ 1 is is 2 }}
{{ 0123 }}
'''
WHITE_SPACE = [
    "{{- ' x' -}}  \n   {%- if true -%}   y   {%- endif %}  z\n   {% if true %}\n   w\n"
    "   {% endif %}\n   {# c #}\n  {#- c -#}  v  \n  {%+ if true %} + {%+ endif %}\n{{ 'a' }}\n\n",
    "{% raw %}\n {{ x }}\n  {% endraw %}\n  {% raw -%}  \n y {%- endraw +%}\nz{% raw %}",
    "a\r\nb\rc\n", "{% if true -%}\n\n{% raw %} {% endraw -%}\n {% endif %}\n\n x{#",
]

WORDS = [
    "hello", "Wörter", "don't", 'a "quote"', "<end_of_sentence>", "<beginning_of_sentence>",
    "<|im_end|>", "{{ x }}", "{% if %}", "日本語", "emoji 😀", "tab\there", "line\nbreak", "  ", "",
    "\n\n", "ΟΔΥΣΣΕΥΣ", "straße", "İ", "a\\b", "</think>", "<think>hm</think>\n\nyes", "\u00a0x\u2003",
    "[INST]", "&amp; <b>", "\x07", "\u200b", "\r\n", "ǆ", "e\u0301", "1 2  3",
]
NAMES = ["get_weather", "search", "calc", "Ünit"]


def text(rng):
    return rng.choice(["", " ", "\n"]).join(
        rng.choice(WORDS) for _ in range(rng.choice([0, 1, 1, 2, 3, 5])))


def scalar(rng):
    return rng.choice([0, 1, -5, 2.5, 1e20, 1e-7, True, False, None, 123456789012, text(rng)])


def value(rng, depth=0):
    kind = rng.random()
    if depth > 2 or kind < 0.6:
        return scalar(rng)
    if kind < 0.8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(["a", "b", "ключ", "q\"", text(rng)]): value(rng, depth + 1)
            for _ in range(rng.randrange(3))}


def content(rng):
    kind = rng.random()
    if kind < 0.75:
        return text(rng)
    parts = [{"type": "text", "text": text(rng)} for _ in range(rng.choice([1, 1, 2]))]
    return parts if kind < 0.97 else None


def tool(rng):
    t = {"name": rng.choice(NAMES), "description": text(rng),
         "parameters": {"type": "object", "properties": value(rng)}}
    return t if rng.random() < 0.7 else {"type": "function", "function": t}


def conversation(rng):
    messages = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": content(rng)})
    for _ in range(rng.choice([1, 1, 2, 3])):
        messages.append({"role": "user", "content": content(rng)})
        if rng.random() < 0.3:
            messages.append({"role": "assistant", "content": content(rng), "tool_calls": [
                {"id": rng.choice(["abcdefghi", "x"]), "type": "function", "function": {
                    "name": rng.choice(NAMES),
                    "arguments": {rng.choice("abc"): value(rng) for _ in range(rng.randrange(3))}}}
                for _ in range(rng.choice([1, 1, 2]))]})
            messages.append({"role": "tool", "name": rng.choice(NAMES), "content": content(rng)})
        if rng.random() < 0.8:
            messages.append({"role": "assistant", "content": content(rng)})
    if rng.random() < 0.1:
        rng.shuffle(messages)
    if rng.random() < 0.06:
        messages.append({"role": "wizard", "content": "x"})
    return messages


def case(rng):
    c = {"messages": conversation(rng),
         "tools": [tool(rng) for _ in range(rng.choice([0, 1, 2, 4]))] if rng.random() < 0.4 else None,
         "gen": rng.random() < 0.5, "extra": {}}
    if rng.random() < 0.3:
        c["extra"] = rng.choice([{"enable_thinking": True}, {"date_string": "1 Jan 2025"},
                                 {"extra_map": {"b": 1, "A": text(rng), "c": [None]}},
                                 {"tools_in_system": False}])
    return c


def environment():
    import jinja2.ext
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            call = self.call_method("_same")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _same(self, caller):
            return caller()

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def render(env, template, c):
    try:
        out = env.from_string(template).render(
            messages=c["messages"], tools=c["tools"], documents=None,
            add_generation_prompt=c["gen"], bos_token=BOS, eos_token=EOS, **c["extra"])
        return {"out": out}
    except Exception as e:  # any failure of Python is an error that must be one here too
        message = str(e) if type(e).__name__ == "TemplateError" else ""
        return {"error": message}


def goldens(num_cases, seed):
    env = environment()
    rng = random.Random(seed)

    def put(x):
        print(json.dumps(x, ensure_ascii=False))

    def put_case(template, name, c):
        put({"t": name, **c, **render(env, template, c)})

    put({"command": "python tools/make_template_goldens.py --cases %d --seed %d" % (num_cases, seed)})
    for name, template in TEMPLATES.items():
        put({"name": name, "template": template, "bos": BOS, "eos": EOS})
        for _ in range(num_cases // len(TEMPLATES)):
            c = case(rng)
            put_case(template, name, c)
    hi = {"messages": [{"role": "user", "content": "hi"}], "tools": None, "gen": False, "extra": {}}
    for template in SNIPPETS.strip("\n").split("\n") + WHITE_SPACE:
        put({"name": "snippet", "template": template, "bos": BOS, "eos": EOS})
        put_case(template, "snippet", hi)


def ranges(test):
    out, start = [], None
    for c in range(0x110001):
        inside = c < 0x110000 and not 0xD800 <= c < 0xE000 and test(chr(c))
        if inside and start is None:
            start = c
        elif not inside and start is not None:
            out.append((start, c - 1))
            start = None
    return out


def wrap(items):
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 1 > 100:
            lines.append(line)
            line = "   "
        line += " " + item
    return "\n".join(lines + [line])


def mappings(method):
    """[(first, last, stride, delta)] for code points that map to one, {c: text} for the others."""
    runs, special = [], {}
    for c in range(0x110000):
        if 0xD800 <= c < 0xE000:
            continue
        to = method(chr(c))
        if to == chr(c):
            continue
        if len(to) > 1:
            special[c] = to
            continue
        delta = ord(to) - c
        if runs and runs[-1][3] == delta:
            first, last, stride, _ = runs[-1]
            if c - last == stride or (first == last and c - last <= 2):
                runs[-1] = (first, c, c - last, delta)
                continue
        runs.append((c, c, 1, delta))
    return runs, special


def unicode_tables():
    import unicodedata

    def ignorable(ch):
        return ("A" + ch + "Σ").lower()[-1] == "ς" and (ch + "Σ").lower()[-1] != "ς"

    def cased(ch):
        return ch.isupper() or ch.islower() or unicodedata.category(ch) == "Lt"

    print(f"// Unicode {unicodedata.unidata_version}, written by")
    print("// tools/make_template_goldens.py --unicode; do not edit.")
    print("#pragma once\n\n#include <cstdint>\n#include <string_view>\n")
    print("namespace mm01::jinja::tables {\n")
    print("struct Range {\n  uint32_t first, last;\n};\n")
    print("// Each second code point from first to last if stride is 2.")
    print("struct Mapping {\n  uint32_t first, last;\n  int16_t stride;\n  int32_t delta;\n};\n")
    print("struct Special {\n  uint32_t from;\n  std::string_view to;\n};\n")
    print("// clang-format off")
    for name, test in [("Unprintable", lambda ch: not ch.isprintable()), ("Cased", cased),
                       ("CaseIgnorable", ignorable)]:
        print(f"inline constexpr Range k{name}[] = {{")
        print(wrap("{0x%x,0x%x}," % r for r in ranges(test)))
        print("};")
    for name, method in [("Upper", str.upper), ("Lower", str.lower), ("Title", str.title)]:
        if name == "Title":  # only where it is not the upper case
            def method(ch):
                return ch if ch.title() == ch.upper() else ch.title()
        runs, special = mappings(method)
        if name == "Title":  # the upper case of these is another letter; title keeps them
            special.update({c: chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000
                            and chr(c).title() == chr(c) != chr(c).upper()})
            for first, last, stride, delta in runs:
                special.update({c: chr(c + delta) for c in range(first, last + 1, stride)})
            runs = []
        if runs:
            print(f"inline constexpr Mapping k{name}[] = {{")
            print(wrap("{0x%x,0x%x,%d,%d}," % r for r in runs))
            print("};")
        print(f"inline constexpr Special k{name}Special[] = {{")
        print(wrap('{0x%x,"%s"},' % (c, "".join("\\x%02x" % b for b in to.encode()))
                   for c, to in sorted(special.items())))
        print("};")
    print("// clang-format on\n")
    print("}  // namespace mm01::jinja::tables")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=208)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unicode", action="store_true", help="write src/io/jinja/unicode_tables.h")
    args = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")
    if args.unicode:
        unicode_tables()
    else:
        goldens(args.cases, args.seed)


if __name__ == "__main__":
    main()
