package server_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/internal/query"
	"auditsink/internal/server"
)

// digest is the first field of a token's line.
func digest(token string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(token))) }

func TestParseTokens(t *testing.T) {
	holders, err := server.ParseTokens([]byte("# clinics\n\n" + digest("a") + ` clinic-a ["A"]` + "\r\n" + strings.ToUpper(digest("b")) + "\t \tclinic.b@x_2\t[\"B, North\", \"Ω \\\"q\\\"\"]\n  " + digest("c") + " ops *\n" +
		digest("d") + ` star ["*"]`))
	require.NoError(t, err)
	require.Len(t, holders, 4)
	for i, want := range []server.Holder{
		{Name: "clinic-a", Scope: query.Organizations("A")},
		{Name: "clinic.b@x_2", Scope: query.Organizations("B, North", `Ω "q"`)},
		{Name: "ops", Scope: query.Everything()},
		{Name: "star", Scope: query.Organizations("*")},
	} {
		require.Equal(t, want.Name, holders[i].Name)
		require.Equal(t, want.Scope, holders[i].Scope)
	}
	holders, err = server.ParseTokens([]byte("# nobody\n"))
	require.NoError(t, err)
	require.Empty(t, holders)
}

// TestParseTokensRefuses: each line at fault is told by its number, and nothing that stands in it is.
func TestParseTokensRefuses(t *testing.T) {
	_, err := server.ParseTokens(nil)
	require.ErrorContains(t, err, "empty")
	for _, c := range []struct{ line, problem string }{
		{"auditsink_SECRET ops *", "64 hex digits"},
		{"SECRET", "want the token's SHA-256, a name and organizations"},
		{digest("x"), "want the token's SHA-256"},
		{digest("x") + " ops", "want the token's SHA-256"},
		{digest("x")[1:] + " ops *", "64 hex digits"},
		{digest("x") + "0 ops *", "64 hex digits"},
		{"g" + digest("x")[1:] + " ops *", "64 hex digits"},
		{digest("x") + " -ops *", "name"},
		{digest("x") + ` "SECRET" *`, "name"},
		{digest("x") + " " + strings.Repeat("n", 65) + " *", "name"},
		{digest("x") + " ops SECRET", "neither * nor a list"},
		{digest("x") + " ops A,B", "neither * nor a list"},
		{digest("x") + " ops **", "neither * nor a list"},
		{digest("x") + ` ops ["A"] # SECRET`, "neither * nor a list"},
		{digest("x") + ` ops ["A"`, "neither * nor a list"},
		{digest("x") + ` ops ["A",3]`, "neither * nor a list"},
		{digest("x") + ` ops {"A":1}`, "neither * nor a list"},
		{digest("x") + ` ops "A"`, "neither * nor a list"},
		{digest("x") + ` ops null`, "no organization"},
		{digest("x") + ` ops []`, "no organization"},
		{digest("x") + ` ops [""]`, "has no name"},
		{digest("x") + ` ops [null]`, "has no name"},
		{digest("x") + ` ops ["` + strings.Repeat("ä", 256) + `"]`, "255"},
		{digest("x") + ` ops ["\ud800"]`, "Unicode"},
		{digest("x") + ` ops ["\u0000"]`, "Unicode"},
		{digest("x") + " ops [\"\xff\"]", "UTF-8"},
		{digest("a") + " other *", "the same token as in line 2"},
		{digest("x") + " clinic-a *", "the same name as in line 2"},
	} {
		_, err := server.ParseTokens([]byte("# a comment\n" + digest("a") + ` clinic-a ["A"]` + "\n" + c.line + "\n" + digest("b") + " b *\n"))
		require.ErrorContains(t, err, "line 3: ", c.line)
		require.ErrorContains(t, err, c.problem, c.line)
		require.NotContains(t, err.Error(), "SECRET")
		require.NotContains(t, err.Error(), digest("x")[1:20])
	}
	_, err = server.ParseTokens([]byte("x\n\n" + digest("a") + " a *\nx"))
	require.ErrorContains(t, err, "line 1: ")
	require.ErrorContains(t, err, "line 4: ")
}

func TestNewToken(t *testing.T) {
	seen := map[string]bool{}
	for _, organizations := range [][]string{nil, {"A"}, {"B, North", `q"<&> 🩺`, "*"}} {
		token, line, err := server.NewToken("n-1", organizations)
		require.NoError(t, err)
		require.Regexp(t, `^auditsink_[A-Z2-7]{26,}$`, token, "130 bits")
		require.False(t, seen[token])
		seen[token] = true
		require.NotContains(t, line, token)
		require.NotContains(t, line, "\n")
		tokens, _, _ := openTokens(t, line)
		holder, ok := tokens.Find(token)
		require.True(t, ok)
		require.Equal(t, "n-1", holder.Name)
		want := query.Everything()
		if organizations != nil {
			want = query.Organizations(organizations...)
		}
		require.Equal(t, want, holder.Scope)
	}
	for _, c := range []struct {
		name          string
		organizations []string
	}{{"", nil}, {"a b", nil}, {"a", []string{""}}, {"a", []string{"A", "\x00"}}, {"a", []string{"\xff"}}} {
		_, _, err := server.NewToken(c.name, c.organizations)
		require.Error(t, err, c)
	}
}

// openTokens writes a file of tokens and opens it.
func openTokens(t *testing.T, lines ...string) (tokens *server.Tokens, path string, log *observer.ObservedLogs) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "tokens")
	write(t, path, lines...)
	core, log := observer.New(zapcore.InfoLevel)
	tokens, err := server.OpenTokens(path, zap.New(core))
	require.NoError(t, err)
	return tokens, path, log
}

func write(t *testing.T, path string, lines ...string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600))
}

// TestTokensFind: nothing but the whole token will do.
func TestTokensFind(t *testing.T) {
	tokens, _, _ := openTokens(t, digest("token-of-a")+` a ["A"]`, digest("token-of-b")+` b ["B"]`)
	for token, name := range map[string]string{
		"token-of-a": "a", "token-of-b": "b", "": "", "token-of-": "", "token-of-a ": "", " token-of-a": "", "Token-of-a": "", "token-of-ab": "", "a": "",
		digest("token-of-a"): "", digest("token-of-a")[:8]: "",
	} {
		holder, ok := tokens.Find(token)
		require.Equal(t, name != "", ok, "%q", token)
		require.Equal(t, name, holder.Name, "%q", token)
	}
	// A digest that differs late is another token's, whatever it begins with.
	other := digest("token-of-c")
	tokens, _, _ = openTokens(t, other[:62]+"00"+` c ["C"]`)
	_, ok := tokens.Find("token-of-c")
	require.False(t, ok)
}

func TestTokensReload(t *testing.T) {
	tokens, path, log := openTokens(t, digest("a")+` a ["A"]`, digest("b")+` b ["B"]`)
	clock := time.Now()
	tokens.SetClock(func() time.Time { return clock })
	can := func(wanted string) {
		t.Helper()
		var able string
		for _, token := range []string{"a", "b", "c"} {
			if _, ok := tokens.Find(token); ok {
				able += token
			}
		}
		require.Equal(t, wanted, able)
	}
	later := func() { clock = clock.Add(time.Second) }
	said := func(level zapcore.Level, texts ...string) {
		t.Helper()
		all := log.TakeAll()
		require.Len(t, all, 1)
		require.Equal(t, level, all[0].Level)
		for _, text := range texts {
			require.Contains(t, all[0].Message+fmt.Sprint(all[0].ContextMap()), text)
		}
	}
	can("ab")
	// A removed token stops working, though size and even times of the file may be as before.
	info, err := os.Stat(path)
	require.NoError(t, err)
	write(t, path, digest("a")+` a ["A"]`, digest("c")+` b ["B"]`)
	require.NoError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
	can("ab") // within the second
	later()
	can("ac")
	said(zapcore.InfoLevel, "read again")
	later()
	can("ac")
	require.Zero(t, log.Len(), "the same file says nothing")

	write(t, path, digest("b")+` b ["B"]`, "rubbish")
	later()
	can("ac")
	said(zapcore.ErrorLevel, "line 2", path, "tokens of before still hold")
	later()
	can("ac")
	require.Zero(t, log.Len(), "the same mistake is told once")

	require.NoError(t, os.Remove(path))
	later()
	can("ac")
	said(zapcore.ErrorLevel, path, "no such file")

	write(t, path)
	later()
	can("ac")
	said(zapcore.ErrorLevel, "empty")

	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	later()
	can("ac")
	said(zapcore.ErrorLevel, "directory")

	require.NoError(t, os.Remove(path))
	write(t, path, digest("a")+` a ["A"]`, digest("c")+` b ["B"]`) // as it was before all that
	later()
	can("ac")
	said(zapcore.InfoLevel, "read again")

	// By rename, as editors and orchestrators do.
	write(t, path+".new", digest("a")+` a *`)
	require.NoError(t, os.Rename(path+".new", path))
	later()
	can("a")
	holder, _ := tokens.Find("a")
	require.True(t, holder.Scope.All())
	said(zapcore.InfoLevel, "read again")

	write(t, path, "# nobody")
	clock = clock.Add(-time.Hour) // a clock set back holds up nothing
	can("")
	said(zapcore.InfoLevel, "read again")
}

func TestOpenTokensRefuses(t *testing.T) {
	_, err := server.OpenTokens(filepath.Join(t.TempDir(), "none"), zap.NewNop())
	require.ErrorContains(t, err, "no such file")
	path := filepath.Join(t.TempDir(), "tokens")
	write(t, path, "rubbish")
	_, err = server.OpenTokens(path, zap.NewNop())
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, "line 1")
	require.NoError(t, os.WriteFile(path, make([]byte, 5<<20), 0o600))
	_, err = server.OpenTokens(path, zap.NewNop())
	require.ErrorContains(t, err, "larger than")
}

// FuzzParseTokens: whatever is in the file, who is let in has a name, and some organization or all; and a line is refused by its number.
func FuzzParseTokens(f *testing.F) {
	f.Add([]byte(digest("a") + ` a ["A"]` + "\n# x\n" + digest("b") + " b *"))
	f.Add([]byte(digest("a") + ` a ["A","\ud800"]`))
	f.Add([]byte("x y z"))
	f.Fuzz(func(t *testing.T, content []byte) {
		holders, err := server.ParseTokens(content)
		if err != nil && len(content) > 0 && !strings.HasPrefix(err.Error(), "line ") {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, h := range holders {
			if h.Name == "" || names[h.Name] {
				t.Fatalf("the name %q", h.Name)
			}
			names[h.Name] = true
			if fmt.Sprint(h.Scope) == fmt.Sprint(query.Scope{}) || fmt.Sprint(h.Scope) == fmt.Sprint(query.Organizations("")) {
				t.Fatalf("the scope %v", h.Scope)
			}
		}
	})
}
