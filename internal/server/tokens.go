package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"auditsink/internal/query"
)

// Tokens are the bearer tokens that may read, as a file names them: see [ParseTokens]. The file is looked at again, at most once in lookEvery, when
// somebody asks, and now and then by [Tokens.Watch]. While it is broken or away, what was read last holds, and the log says so.
type Tokens struct {
	path string
	log  *zap.Logger
	now  func() time.Time

	mu      sync.Mutex // guards what follows
	looked  time.Time
	content []byte
	fault   string // what was wrong with the file at the last look, empty for nothing
	holders []Holder
}

// Holder is who has a token: its name, for the log, and what it may see. The token itself is nowhere, only its SHA-256.
type Holder struct {
	Name   string
	Scope  query.Scope
	digest [sha256.Size]byte
}

const (
	lookEvery     = time.Second
	watchEvery    = 5 * time.Second
	maxTokensFile = 4 << 20
)

// OpenTokens reads the file of the tokens.
func OpenTokens(path string, log *zap.Logger) (*Tokens, error) {
	t := &Tokens{path: path, log: log, now: time.Now}
	content, holders, err := readTokens(path)
	if err != nil {
		return nil, err
	}
	t.content, t.holders, t.looked = content, holders, t.now()
	return t, nil
}

func readTokens(path string) ([]byte, []Holder, error) {
	content, err := readAll(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read the file of the tokens: %w", err)
	}
	holders, err := ParseTokens(content)
	if err != nil {
		return content, nil, fmt.Errorf("%s: %w", path, err)
	}
	return content, holders, nil
}

func readAll(path string) (content []byte, err error) {
	f, err := os.Open(path) //nolint:gosec // G304: the operator names the file
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	content, err = io.ReadAll(io.LimitReader(f, maxTokensFile+1))
	if err == nil && len(content) > maxTokensFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxTokensFile)
	}
	return content, err
}

var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// ParseTokens reads the lines of a file of tokens:
//
//	<SHA-256 of the token, 64 hex digits> <name> <organizations>
//
// where organizations is a list in JSON, ["Clinic A","Lab, North"], since names may hold spaces and commas, or * for everything. Lines that are empty or
// begin with # say nothing. Its error names every line at fault, and never what stands in it: somebody may have put the token itself there. A file without
// a single byte is at fault, being one that is just written; one of comments alone lets nobody in.
func ParseTokens(content []byte) ([]Holder, error) {
	if len(content) == 0 {
		return nil, errors.New("it is empty; to let nobody in, say so in a comment (#)")
	}
	var holders []Holder
	var faults []error
	digests, names := map[[sha256.Size]byte]int{}, map[string]int{}
	for i, line := range bytes.Split(content, []byte{'\n'}) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		h, err := parseHolder(line)
		switch {
		case err != nil:
		case digests[h.digest] > 0:
			err = fmt.Errorf("the same token as in line %d", digests[h.digest])
		case names[h.Name] > 0:
			err = fmt.Errorf("the same name as in line %d; the log tells tokens apart by it", names[h.Name])
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("line %d: %w", i+1, err))
			continue
		}
		digests[h.digest], names[h.Name] = i+1, i+1
		holders = append(holders, h)
	}
	return holders, errors.Join(faults...)
}

func parseHolder(line []byte) (Holder, error) {
	if !utf8.Valid(line) {
		return Holder{}, errors.New("it isn't UTF-8")
	}
	digest, rest := cutField(string(line))
	name, organizations := cutField(rest)
	if organizations == "" {
		return Holder{}, errors.New("want the token's SHA-256, a name and organizations; `auditsink query token` makes a line")
	}
	h := Holder{Name: name}
	if n, err := hex.Decode(h.digest[:], []byte(digest)); len(digest) != hex.EncodedLen(sha256.Size) || err != nil || n != sha256.Size {
		return Holder{}, errors.New("it doesn't begin with a SHA-256 in 64 hex digits; `auditsink query token` makes a line")
	}
	if !nameRule.MatchString(name) {
		return Holder{}, errors.New("its name (the second field) may have up to 64 of A-Z a-z 0-9 . _ @ -, a letter or digit first")
	}
	var err error
	h.Scope, err = parseScope(organizations)
	return h, err
}

// cutField parts a text at its first run of spaces and tabs.
func cutField(text string) (field, rest string) {
	i := strings.IndexAny(text, " \t")
	if i < 0 {
		return text, ""
	}
	return text[:i], strings.TrimLeft(text[i:], " \t")
}

func parseScope(text string) (query.Scope, error) {
	if text == "*" {
		return query.Everything(), nil
	}
	var names []string
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		return query.Scope{}, errors.New(`its organizations (the third field) are neither * nor a list in JSON, such as ["Clinic A","Lab, North"]`)
	}
	return scopeOf(names)
}

func scopeOf(names []string) (query.Scope, error) {
	if len(names) == 0 {
		return query.Scope{}, errors.New("it names no organization")
	}
	for _, name := range names {
		switch {
		case name == "":
			return query.Scope{}, errors.New("an organization has no name; events of no organization are seen by * only")
		case utf8.RuneCountInString(name) > 255:
			return query.Scope{}, errors.New("an organization's name is longer than that of any event, 255 characters")
		case !utf8.ValidString(name) || strings.ContainsAny(name, "\x00\ufffd"): // what JSON makes of half a surrogate pair
			return query.Scope{}, errors.New("an organization's name isn't Unicode text")
		}
	}
	return query.Organizations(names...), nil
}

// NewToken makes a token, and the line by which the file of the tokens lets it in: to all organizations where there are none. A token has 128 random bits
// or more, so nobody can guess one whose SHA-256 they have, and a slow hash, as for passwords, would only slow down who asks.
func NewToken(name string, organizations []string) (token, line string, err error) {
	if !nameRule.MatchString(name) {
		return "", "", errors.New("the name may have up to 64 of A-Z a-z 0-9 . _ @ -, a letter or digit first")
	}
	scope := []byte("*")
	if len(organizations) > 0 {
		if _, err := scopeOf(organizations); err != nil {
			return "", "", err
		}
		var list bytes.Buffer
		encoder := json.NewEncoder(&list)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(organizations); err != nil {
			return "", "", fmt.Errorf("write the organizations as JSON: %w", err)
		}
		scope = bytes.TrimSpace(list.Bytes())
	}
	token = "auditsink_" + rand.Text()
	return token, fmt.Sprintf("%x %s %s", sha256.Sum256([]byte(token)), name, scope), nil
}

// Find returns the holder of a token.
func (t *Tokens) Find(token string) (Holder, bool) {
	digest := sha256.Sum256([]byte(token))
	found := -1
	holders := t.look()
	for i := range holders { // all of them, whichever fits: how long it takes tells nothing
		if subtle.ConstantTimeCompare(digest[:], holders[i].digest[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return Holder{}, false
	}
	return holders[found], true
}

// Watch looks at the file until ctx ends, so that the log tells of a mistake in it before somebody asks.
func (t *Tokens) Watch(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			t.look()
		}
	}
}

// look reads the file again, if that wasn't done just now, and returns who has a token. It compares the content and not the file's times, whose
// resolution may hide the second of two changes.
func (t *Tokens) look() []Holder {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if since := now.Sub(t.looked); 0 <= since && since < lookEvery {
		return t.holders
	}
	t.looked = now
	content, err := readAll(t.path)
	if err == nil && t.fault == "" && bytes.Equal(content, t.content) {
		return t.holders
	}
	var holders []Holder
	if err == nil {
		holders, err = ParseTokens(content)
	}
	if err != nil {
		if t.fault != err.Error() {
			t.log.Error("the file of the tokens (AUDITSINK_TOKENS_FILE) can't be used: the tokens of before still hold, also those removed from it since; mend it",
				zap.String("file", t.path), zap.Int("tokens", len(t.holders)), zap.Error(err))
		}
		t.fault = err.Error()
		return t.holders
	}
	t.log.Info("the file of the tokens was read again", zap.String("file", t.path), zap.Int("tokens", len(holders)))
	t.content, t.holders, t.fault = content, holders, ""
	return t.holders
}
