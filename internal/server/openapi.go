package server

import (
	_ "embed"
	"net/http"
	"strconv"
)

// openAPI describes /v1 (OpenAPI 3.1). A test holds it against what is answered.
//
//go:embed openapi.json
var openAPI []byte

// describe answers the description: it tells nothing of what is stored, and a generator of clients needs no token.
func (a *api) describe(w http.ResponseWriter, _ *http.Request, _ caller) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(openAPI)))
	_, _ = w.Write(openAPI) // whoever asked has gone
	return nil
}
