package hashing

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestAppendPrehash(t *testing.T) {
	const empty = "action:null|organizationId:null|outcomeDescription:null|principalId:null|status:null|" +
		"targetResourceId:null|targetResourceType:null|timestamp:null"
	cases := []struct {
		name   string
		fields Fields
		want   string
	}{
		{"nothing", Fields{}, empty},
		{"empty is null", Fields{Action: []byte{}, Timestamp: []byte("")}, empty},
		{"order and keys", Fields{
			Action: []byte("a"), OrganizationID: []byte("o"), OutcomeDescription: []byte("d"), PrincipalID: []byte("p"),
			Status: []byte("s"), TargetResourceID: []byte("i"), TargetResourceType: []byte("t"), Timestamp: []byte("T"),
		}, `action:"a"|organizationId:"o"|outcomeDescription:"d"|principalId:"p"|status:"s"|targetResourceId:"i"|` +
			`targetResourceType:"t"|timestamp:"T"`},
		{"the text null", Fields{Action: []byte("null")}, strings.Replace(empty, "null", `"null"`, 1)},
		{"separators stay", Fields{Action: []byte("a|b:c")}, strings.Replace(empty, "null", `"a|b:c"`, 1)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, string(AppendPrehash(nil, &c.fields)))
			require.Equal(t, "before "+c.want, string(AppendPrehash([]byte("before "), &c.fields)), "it appends")
		})
	}
}

func TestAppendValueEscapes(t *testing.T) {
	cases := map[string]string{
		"\"":                       `"\""`,
		"\\":                       `"\\"`,
		"/":                        `"/"`,
		"\b\t\n\f\r":               `"\b\t\n\f\r"`,
		"\x00\x01\x07\x0b\x0e\x1f": `"\u0000\u0001\u0007\u000b\u000e\u001f"`,
		"\x1a\x1b":                 `"\u001a\u001b"`,
		" \x7f\u0080":              "\" \x7f\u0080\"",
		"<>&'":                     `"<>&'"`,
		"\u2028\u2029\ufeff\uffff": "\"\u2028\u2029\ufeff\uffff\"",
		"é患👩\u200d⚕️":              "\"é患👩\u200d⚕️\"",
		`\u0041`:                   `"\\u0041"`,
	}
	for in, want := range cases {
		require.Equal(t, want, string(appendValue(nil, []byte(in))), "%q", in)
	}
}

// TestEveryByteAtEveryPlace drives the eight-byte steps: each byte, at each place of texts around the step's size.
func TestEveryByteAtEveryPlace(t *testing.T) {
	for c := range 256 {
		for size := 1; size <= 17; size++ {
			for at := range size {
				for _, around := range []byte{'a', 0x80, 0xff, '!', '#'} {
					text := bytes.Repeat([]byte{around}, size)
					text[at] = byte(c)
					want := size
					if c < 0x20 || c == '"' || c == '\\' {
						want = at
					}
					require.Equal(t, want, plainPrefix(text), "%q", text)
				}
			}
		}
	}
}

func TestAppendStoredHex(t *testing.T) {
	const instant = 1_774_536_902_855_123 // 2026-03-26T14:55:02.855123Z
	fields := Fields{Action: []byte("a"), Status: []byte("success"), Timestamp: []byte("not looked at")}
	hashed := func(timestamp string) string {
		f := Fields{Action: []byte("a"), Status: []byte("success"), Timestamp: []byte(timestamp)}
		return string(AppendHex(nil, &f, new([]byte)))
	}
	var scratch []byte
	require.Equal(t, hashed("2026-03-26T14:55:02.855Z"), string(AppendStoredHex(nil, &fields, nil, instant, &scratch)))
	require.Contains(t, string(scratch), `|timestamp:"2026-03-26T14:55:02.855Z"`)
	require.Equal(t, hashed("2026-03-26t14:55:02.855123Z"),
		string(AppendStoredHex(nil, &fields, []byte("2026-03-26t14:55:02.855123Z"), instant, &scratch)))
	require.Equal(t, hashed(""), string(AppendStoredHex(nil, &fields, []byte{}, instant, &scratch)),
		"an empty timestamp_text is not null: somebody put it there")
	require.Equal(t, "not looked at", string(fields.Timestamp))
}

// slowValue is JSON.stringify by way of encoding/json, a character at a time, because that package escapes
// U+2028 and U+2029 even so.
func slowValue(text string) string {
	if text == "" {
		return "null"
	}
	var out strings.Builder
	for _, r := range text {
		if r == '\u2028' || r == '\u2029' {
			out.WriteRune(r)
			continue
		}
		var one bytes.Buffer
		encoder := json.NewEncoder(&one)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(string(r)); err != nil {
			panic(err)
		}
		out.WriteString(strings.TrimSuffix(one.String(), "\n")[1:])
		text := out.String()
		out.Reset()
		out.WriteString(text[:len(text)-1])
	}
	return `"` + out.String() + `"`
}

func FuzzHash(f *testing.F) {
	for _, v := range readVectors(f) {
		fields := v.fields(f)
		f.Add(string(fields.OutcomeDescription), string(fields.PrincipalID))
	}
	f.Add("\b\f\x00\x1f\x7f\u2028\u2029<&>", `\u2028\`)
	f.Fuzz(func(t *testing.T, a, b string) {
		a, b = strings.ToValidUTF8(a, "?"), strings.ToValidUTF8(b, "?")
		fields := Fields{OutcomeDescription: []byte(a), Timestamp: []byte(b)}
		want := "action:null|organizationId:null|outcomeDescription:" + slowValue(a) +
			"|principalId:null|status:null|targetResourceId:null|targetResourceType:null|timestamp:" + slowValue(b)
		got := string(AppendPrehash(nil, &fields))
		if want != got {
			t.Fatalf("want %q\ngot  %q", want, got)
		}
		if !utf8.ValidString(got) {
			t.Fatalf("not UTF-8: %q", got)
		}
	})
}

func TestNoAllocations(t *testing.T) {
	f := readVectors(t)[0].fields(t)
	signer := NewSigner([]byte("secret"))
	var dst, scratch []byte
	require.Zero(t, testing.AllocsPerRun(100, func() {
		dst = AppendHex(dst[:0], f, &scratch)
		dst = AppendStoredHex(dst[:0], f, nil, 1_774_536_902_855_123, &scratch)
		dst = signer.AppendHex(dst[:0], dst)
		dst = AppendTimestamp(dst[:0], 1_774_536_902_855_123)
	}))
}
