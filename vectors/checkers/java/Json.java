import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Reads JSON (RFC 8259), for the JDK has nothing that does: Map, List, String, Long, Boolean, null. */
final class Json {
    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    static Object parse(String text) {
        Json json = new Json(text);
        Object value = json.value();
        json.space();
        if (json.at != text.length()) {
            throw new IllegalArgumentException("more than one value");
        }
        return value;
    }

    private Object value() {
        space();
        char first = text.charAt(at);
        if (first == '{') {
            return object();
        } else if (first == '[') {
            return array();
        } else if (first == '"') {
            return string();
        }
        int begin = at;
        while (at < text.length() && ",]} \t\r\n".indexOf(text.charAt(at)) < 0) {
            at++;
        }
        String word = text.substring(begin, at);
        return switch (word) {
            case "true" -> true;
            case "false" -> false;
            case "null" -> null;
            default -> Long.valueOf(word);
        };
    }

    private Map<String, Object> object() {
        Map<String, Object> fields = new LinkedHashMap<>();
        for (expect('{'); !ends('}'); ) {
            String name = string();
            space();
            expect(':');
            fields.put(name, value());
        }
        return fields;
    }

    private List<Object> array() {
        List<Object> items = new ArrayList<>();
        for (expect('['); !ends(']'); ) {
            items.add(value());
        }
        return items;
    }

    /** Steps over a comma, or the end of an object or array. */
    private boolean ends(char end) {
        space();
        if (text.charAt(at) == ',') {
            at++;
            space();
        }
        boolean ended = text.charAt(at) == end;
        at += ended ? 1 : 0;
        return ended;
    }

    private String string() {
        StringBuilder read = new StringBuilder();
        for (expect('"'); text.charAt(at) != '"'; at++) {
            char letter = text.charAt(at);
            if (letter == '\\') {
                letter = text.charAt(++at);
                int known = "nrtbf".indexOf(letter);
                if (known >= 0) {
                    letter = "\n\r\t\b\f".charAt(known);
                } else if (letter == 'u') {
                    letter = (char) Integer.parseInt(text.substring(at + 1, at + 5), 16);
                    at += 4;
                }
            }
            read.append(letter);
        }
        at++;
        return read.toString();
    }

    private void expect(char letter) {
        if (text.charAt(at++) != letter) {
            throw new IllegalArgumentException("not JSON at " + at);
        }
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }
}
