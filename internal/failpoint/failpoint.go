//go:build !failpoints

// Package failpoint marks the moments at which the fault suite kills or stops a worker. In a program built without the tag
// "failpoints" a mark does nothing and costs nothing.
package failpoint

// Hit marks that the moment of the given name has come.
func Hit(string) {}
