import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Reads JSON (RFC 8259), for the JDK has nothing that does: Map, List, String, Long, Boolean, null.
 *
 * <p>It is strict, as bundles want it: no name twice, no number but integers, no -0, no half of a
 * surrogate pair. What is refused is an IllegalArgumentException.
 */
final class Json {
    private static final Pattern WORD =
            Pattern.compile("true|false|null|(0|-?[1-9][0-9]{0,17})(?![0-9.eE])");
    private static final Pattern HEX = Pattern.compile("u[0-9a-fA-F]{4}");
    private static final int DEPTH = 32;
    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** Of UTF-8. Java would replace bytes that are none. A byte order mark is no JSON. */
    static Object parse(byte[] utf8) {
        try {
            return parse(StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(utf8)).toString());
        } catch (CharacterCodingException noText) {
            throw new IllegalArgumentException(noText);
        }
    }

    static Object parse(String text) {
        Json json = new Json(text);
        Object value = json.value(0);
        json.space();
        if (json.at != text.length()) {
            throw json.refusal();
        }
        return value;
    }

    /** Writes it in the one way of RFC 8785. */
    static String canonical(Object value) {
        List<String> parts = new ArrayList<>();
        if (value instanceof Map<?, ?> fields) {
            new TreeMap<Object, Object>(fields)
                    .forEach((name, field) -> parts.add(quoted((String) name) + ":" + canonical(field)));
            return "{" + String.join(",", parts) + "}";
        } else if (value instanceof List<?> items) {
            items.forEach(item -> parts.add(canonical(item)));
            return "[" + String.join(",", parts) + "]";
        }
        return value instanceof String words ? quoted(words) : String.valueOf(value);
    }

    private static String quoted(String words) {
        StringBuilder written = new StringBuilder("\"");
        for (char letter : words.toCharArray()) {
            int known = "\n\r\t\b\f\"\\".indexOf(letter);
            if (known >= 0) {
                written.append('\\').append("nrtbf\"\\".charAt(known));
            } else if (letter < ' ') {
                written.append(String.format("\\u%04x", (int) letter));
            } else {
                written.append(letter);
            }
        }
        return written.append('"').toString();
    }

    private Object value(int depth) {
        space();
        char first = next();
        if (depth > DEPTH) {
            throw refusal();
        } else if (first == '{') {
            return object(depth);
        } else if (first == '[') {
            return array(depth);
        } else if (first == '"') {
            return string();
        }
        Matcher word = WORD.matcher(text).region(at, text.length());
        if (!word.lookingAt()) {
            throw refusal();
        }
        at = word.end();
        return switch (word.group()) {
            case "true" -> true;
            case "false" -> false;
            case "null" -> null;
            default -> Long.valueOf(word.group());
        };
    }

    private Map<String, Object> object(int depth) {
        Map<String, Object> fields = new LinkedHashMap<>();
        for (boolean more = begins('}'); more; more = goesOn('}')) {
            space();
            String name = string();
            space();
            expect(':');
            Object value = value(depth + 1);
            if (fields.containsKey(name)) {
                throw refusal();
            }
            fields.put(name, value);
        }
        return fields;
    }

    private List<Object> array(int depth) {
        List<Object> items = new ArrayList<>();
        for (boolean more = begins(']'); more; more = goesOn(']')) {
            items.add(value(depth + 1));
        }
        return items;
    }

    /** Steps over the opening bracket, and over the closing one where nothing is between. */
    private boolean begins(char end) {
        at++;
        space();
        boolean ended = next() == end;
        at += ended ? 1 : 0;
        return !ended;
    }

    /** Steps over a comma, or the closing bracket. */
    private boolean goesOn(char end) {
        space();
        boolean ended = next() == end;
        expect(ended ? end : ',');
        return !ended;
    }

    private String string() {
        StringBuilder read = new StringBuilder();
        for (expect('"'); next() != '"'; at++) {
            char letter = next();
            if (letter < ' ') {
                throw refusal();
            } else if (letter == '\\') {
                at++;
                letter = escaped();
            }
            read.append(letter);
        }
        at++;
        if (read.codePoints().anyMatch(each -> each >= Character.MIN_SURROGATE && each <= Character.MAX_SURROGATE)) {
            throw refusal(); // half of a pair
        }
        return read.toString();
    }

    private char escaped() {
        char letter = next();
        int known = "nrtbf\"\\/".indexOf(letter);
        if (known >= 0) {
            return "\n\r\t\b\f\"\\/".charAt(known);
        }
        if (letter != 'u' || !HEX.matcher(text).region(at, text.length()).lookingAt()) {
            throw refusal();
        }
        at += 4;
        return (char) Integer.parseInt(text.substring(at - 3, at + 1), 16);
    }

    private char next() {
        if (at >= text.length()) {
            throw refusal();
        }
        return text.charAt(at);
    }

    private void expect(char letter) {
        if (next() != letter) {
            throw refusal();
        }
        at++;
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private IllegalArgumentException refusal() {
        return new IllegalArgumentException("not JSON, or not of the strict kind, at " + at);
    }
}
