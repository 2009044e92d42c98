; Captures: @name, the node that defines (named after its kind) and, where a name says what it belongs to, @scope.
(class_definition name: (identifier) @name) @class
(function_definition name: (identifier) @name) @function
(module (assignment left: (identifier) @name) @variable)
(type_alias_statement left: (type (identifier) @name)) @type
