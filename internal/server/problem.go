package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// problem is an answer that says what is wrong (RFC 9457). As an error, it is for whoever asked.
type problem struct {
	Type      string `json:"type"` // about:blank: the status says it all
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Parameter string `json:"parameter,omitempty"` // the parameter at fault

	header http.Header
}

// Error is the detail.
func (p *problem) Error() string { return p.Detail }

func newProblem(status int, detail string) *problem {
	return &problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, header: http.Header{}}
}

// with adds a header to the answer.
func (p *problem) with(name, value string) *problem {
	p.header.Set(name, value)
	return p
}

// of names the parameter at fault, as whoever asked wrote it.
func (p *problem) of(parameter string) *problem {
	p.Parameter = strings.ToValidUTF8(parameter[:min(len(parameter), 100)], "")
	return p
}

// write answers with the problem.
func (p *problem) write(w http.ResponseWriter) error {
	for name, values := range p.header {
		w.Header()[name] = values
	}
	return writeJSON(w, "application/problem+json", p.Status, p)
}

// errUnwritable is a value that has no form in JSON.
var errUnwritable = errors.New("an answer can't be written as JSON")

// writeJSON answers with a value in JSON.
func writeJSON(w http.ResponseWriter, mediaType string, status int, v any) error {
	body, err := marshal(v)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnwritable, err)
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	//nolint:errcheck,gosec // G104: whoever asked has gone: nobody is left to tell
	w.Write(body)
	return nil
}

func marshal(v any) ([]byte, error) {
	var buf jsonBuffer
	encoder := json.NewEncoder(&buf)
	encoder.SetEscapeHTML(false) // what was received is shown as it is
	err := encoder.Encode(v)
	return buf, err
}

// jsonBuffer takes what is encoded.
type jsonBuffer []byte

// Write never fails.
func (b *jsonBuffer) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}
