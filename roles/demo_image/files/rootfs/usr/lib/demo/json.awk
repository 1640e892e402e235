# One line for each scalar of a JSON text: the keys that lead to it, then its value, separated by tabs. Array items are
# numbered from 0. In strings the escapes of control characters and of the backslash stay, so that a line is a line.
{ text = text $0 "\n" }
END { value("", token()) }

function token(    word) {
    if (!match(text, /^[ \t\r\n]*("([^"\\]|\\.)*"|[][{}:,]|[^][{}:," \t\r\n]+)/))
        return ""
    word = substr(text, 1, RLENGTH)
    text = substr(text, RLENGTH + 1)
    sub(/^[ \t\r\n]+/, "", word)
    return word
}

function value(path, word) {
    if (word == "{")
        object(path)
    else if (word == "[")
        array(path)
    else
        print path plain(word)
}

function object(path,    key) {
    for (key = token(); key != "}" && key != ""; key = token()) {
        if (key == ",")
            continue
        token()
        value(path plain(key) "\t", token())
    }
}

function array(path,    word, number) {
    number = 0
    for (word = token(); word != "]" && word != ""; word = token())
        if (word != ",")
            value(path number++ "\t", word)
}

function plain(word,    out, escape) {
    if (word !~ /^"/)
        return word
    word = substr(word, 2, length(word) - 2)
    out = ""
    while (match(word, /\\(u[0-9a-fA-F][0-9a-fA-F][0-9a-fA-F][0-9a-fA-F]|.)/)) {
        escape = substr(word, RSTART, RLENGTH)
        out = out substr(word, 1, RSTART - 1)
        word = substr(word, RSTART + RLENGTH)
        if (escape == "\\\"" || escape == "\\/")
            out = out substr(escape, 2)
        else if (escape ~ /^\\u/)
            out = out character(hex(substr(escape, 3)), escape)
        else
            out = out escape
    }
    return out word
}

# UTF-8 of a code point; the first half of a surrogate pair waits for the second.
function character(code, escape) {
    if (code >= 55296 && code < 56320) {
        high = code
        return ""
    }
    if (code >= 56320 && code < 57344)
        code = 65536 + (high - 55296) * 1024 + code - 56320
    if (code < 32)
        return escape
    if (code < 128)
        return sprintf("%c", code)
    if (code < 2048)
        return sprintf("%c%c", 192 + int(code / 64), 128 + code % 64)
    if (code < 65536)
        return sprintf("%c%c%c", 224 + int(code / 4096), 128 + int(code / 64) % 64, 128 + code % 64)
    return sprintf("%c%c%c%c", 240 + int(code / 262144), 128 + int(code / 4096) % 64, 128 + int(code / 64) % 64, 128 + code % 64)
}

function hex(digits,    number, position) {
    number = 0
    for (position = 1; position <= length(digits); position++)
        number = number * 16 + index("0123456789abcdef", tolower(substr(digits, position, 1))) - 1
    return number
}
