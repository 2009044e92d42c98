(class name: [(constant) (scope_resolution)] @name) @class
(module name: [(constant) (scope_resolution)] @name) @module
(method name: [(identifier) (constant) (operator) (setter)] @name) @method
(singleton_method name: [(identifier) (constant) (operator) (setter)] @name) @method
(assignment left: (constant) @name) @constant
